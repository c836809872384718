// Predictions, loss and residual of one row's entries, straight from global memory (the rows have
// just been read, so they come from the L2 cache).
//
// Thread mapping: GROUP lanes share an entry, each with every GROUP-th quad of columns; the groups
// of a block take entries in turn, and their sums are added in order.
#pragma once
#include "half_sweep.cuh"
#include "reduce.cuh"

template <int THREADS, int SIZE>
struct Checker {
    static constexpr int kQuads = SIZE / 4;
    static constexpr int kGroup = kQuads >= 32 ? 32 : (kQuads > 8 ? 16 : 8);
    static constexpr int kOwn = (kQuads + kGroup - 1) / kGroup;  // quads of each lane
    static constexpr int kGroups = THREADS / kGroup;
    static constexpr int kFloats = kGroups * SIZE;

    // Returns what entries first .. first + count - 1 add to the objective, to every thread, and
    // leaves in sums[c], c < SIZE, column c of W^T (sign W z - tau). `z` (SIZE,) and `sums`
    // (kFloats) are shared; `scratch` has room for a float for each warp. Ends with a barrier.
    static __device__ __forceinline__ float run(const HalfSweep& problem, const Row& row,
                                                int64 first, int64 count, Shared<float> z,
                                                Shared<float> sums, Shared<float> scratch) {
        const int member = threadIdx.x % kGroup, group = threadIdx.x / kGroup;
        float4 own[kOwn], sum[kOwn];
#pragma unroll
        for (int o = 0; o < kOwn; ++o) {
            const int c = 4 * (member + kGroup * o);
            own[o] = c < SIZE ? load4(z + c) : zero4();
            sum[o] = zero4();
        }
        float loss = 0.f;
        for (int64 base = 0; base < count; base += kGroups) {
            const bool valid = base + group < count;
            const Entry entry(problem, first + (valid ? base + group : 0));
            float4 w[kOwn];
            float q = 0.f;
#pragma unroll
            for (int o = 0; o < kOwn; ++o) {
                const int c = 4 * (member + kGroup * o);
                w[o] = valid && c < problem.stride
                           ? load_scaled(problem, row, entry.index, entry.size, c)
                           : zero4();
                q = add_dot(q, w[o], own[o]);
            }
            q = group_sum<kGroup>(q);
            if (valid) {
                const float error = entry.sign * q - entry.tau;
#pragma unroll
                for (int o = 0; o < kOwn; ++o) sum[o] = add_scaled(sum[o], error, w[o]);
                if (member == 0) loss += entry_loss(problem, q, entry.sign, entry.tau);
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
