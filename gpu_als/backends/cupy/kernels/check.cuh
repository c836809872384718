// Predictions, loss and residual of one row's entries, straight from global memory (the rows have
// just been read, so they come from the L2 cache).
//
// Thread mapping: GROUP lanes share an entry, each with every GROUP-th quad of columns; the groups
// of a block take entries in turn, and their sums are added in order.
#pragma once
#include "half_sweep.cuh"
#include "reduce.cuh"

__host__ __device__ constexpr int larger(int a, int b) {
    return a > b ? a : b;
}

template <int THREADS, int SIZE>
struct Checker {
    static constexpr int kQuads = SIZE / 4;
    static constexpr int kGroup = kQuads >= 32 ? 32 : (kQuads > 8 ? 16 : 8);
    static constexpr int kOwn = (kQuads + kGroup - 1) / kGroup;  // quads of each lane
    static constexpr int kGroups = THREADS / kGroup;
    static constexpr int kAhead = 4;  // entries of a group that are on their way
    static constexpr int kFloats = kGroups * SIZE;

    // Returns what entries first .. first + count - 1 add to the objective, to every thread, and
    // leaves in sums[c], c < SIZE, column c of W^T (sign W z - tau). `z` (SIZE,) and `sums`
    // (kFloats) are shared; `scratch` has room for a float for each warp. Ends with a barrier.
    static __device__ __forceinline__ float run(const HalfSweep& problem, const Row& row,
                                                int64 first, int count, Shared<float> z,
                                                Shared<float> sums, Shared<float> scratch) {
        const int thread = read_thread_number(), member = thread % kGroup, group = thread / kGroup;
        float4 own[kOwn], sum[kOwn];
#pragma unroll
        for (int o = 0; o < kOwn; ++o) {
            const int c = 4 * (member + kGroup * o);
            own[o] = c < SIZE ? load4(z + c) : zero4();
            sum[o] = zero4();
        }
        float loss = 0.f;
        for (int base = group; base < count + group; base += kAhead * kGroups) {
            Entry entry[kAhead];
            float4 w[kAhead][kOwn];
#pragma unroll
            for (int a = 0; a < kAhead; ++a)
                // The last one over again beyond the end: a branch would let each load wait for the other.
                entry[a] = Entry(problem, first + min(base + a * kGroups, count - 1));
#pragma unroll
            for (int a = 0; a < kAhead; ++a)
#pragma unroll
                for (int o = 0; o < kOwn; ++o) {
                    const int c = 4 * (member + kGroup * o);
                    w[a][o] = zero4();
                    if (base + a * kGroups < count && c < problem.stride)
                        w[a][o] = load_factors(problem, entry[a].index, c);
                }
            float q[kAhead];
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                q[a] = 0.f;
#pragma unroll
                for (int o = 0; o < kOwn; ++o) {
                    const int c = 4 * (member + kGroup * o);
                    if (c < problem.stride) w[a][o] = scaled(row, w[a][o], entry[a].size, c);
                    q[a] = add_dot(q[a], w[a][o], own[o]);
                }
            }
            group_sums<kGroup>(q);
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                if (base + a * kGroups >= count) continue;
                const float error = entry[a].sign * q[a] - entry[a].tau;
#pragma unroll
                for (int o = 0; o < kOwn; ++o) sum[o] = add_scaled(sum[o], error, w[a][o]);
                if (member == 0) loss += entry_loss(problem, q[a], entry[a].sign, entry[a].tau);
            }
        }
#pragma unroll
        for (int o = 0; o < kOwn; ++o) {
            const int c = 4 * (member + kGroup * o);
            if (c < SIZE) store4(sums + group * SIZE + c, sum[o]);
        }
        loss = block_sum<THREADS>(loss, scratch);
        for (int c = threadIdx.x; c < SIZE; c += THREADS) {
            float total = 0.f;
            for (int g = 0; g < kGroups; ++g) total += sums[g * SIZE + c];
            sums[c] = total;
        }
        __syncthreads();
        return loss;
    }
};
