// Rows of up to EDGE * TILES entries in their dual form, one block of EDGE * EDGE threads for each row.
//
//     S = shift I + W W^T,    S u = tau - W b0 / shift,    z = b0 / shift + W^T u
//
// Where S is ill-conditioned, one step of iterative refinement follows: S du = tau - shift u - W z.
//
// W passes through shared memory in chunks of `chunk` columns, for S, for z and for the check, and
// once more for refinement. Each pass goes the other way than the one before it and finds its first
// chunk there. So where all columns fit (chunk = stride) every row of `fixed` is read from global
// memory exactly once, and of two chunks, four halves.
//
// Thread mapping. Threads form an EDGE x EDGE grid, warps 4 x 8 parts of it, which together read
// the fewest rows of W. In the Gram thread (ty, tx) keeps S[ty + EDGE a][tx + EDGE b] for a >= b in
// registers and reads W 16 bytes at a time along its rows. Products W^T v: warps over rows, lanes
// over columns, added over warps in order. Products W z: thread i has row i. Factorisation: see
// cholesky.cuh.
//
// Shared memory (dual_block_floats in launch.py): the entries, the panels of S, z, the columns'
// scale, sums over warps, and the chunk of W with rows padded to 4 mod 8 floats, so that 16-byte reads of
// eight neighbouring rows meet no bank conflict.
//
// Macros: EDGE (8 or 16), TILES (TILES <= EDGE).
#include "cholesky.cuh"

constexpr int THREADS = EDGE * EDGE;
constexpr int M = EDGE * TILES;
constexpr int SIZE = (M + kPanel - 1) / kPanel * kPanel;
constexpr int WARPS = THREADS / 32;
constexpr int kAhead = 4;  // rows of W that a thread has on their way

struct Chunk {
    Shared<float> w;
    int ld;
    int first;  // column
    int width;
};

// Loads columns of W; rows beyond the row's entries are zero, up to M.
__device__ __forceinline__ void load_chunk(const HalfSweep& problem, const Row& row,
                                           Shared<int> index, Shared<float> size,
                                           const Chunk& chunk) {
    const int n = int(row.count), lanes = lanes_for(chunk.width / 4), at_once = THREADS / lanes;
    const int own = 4 * (threadIdx.x % lanes);
    for (int first = threadIdx.x / lanes; first < M; first += kAhead * at_once)
        for (int c = own; c < chunk.width; c += 4 * lanes) {
            float4 held[kAhead];
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                const int i = first + a * at_once;
                held[a] = zero4();
                if (i < n) held[a] = load_factors(problem, index[i], chunk.first + c);
            }
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                const int i = first + a * at_once;
                if (i < M)
                    store4(chunk.w + i * chunk.ld + c, scaled(row, held[a], size[i], chunk.first + c));
            }
        }
}

// The row's dot product with the chunk's columns of `vector`, for thread i < n.
__device__ __forceinline__ float dot_row(const Chunk& chunk, Shared<float> vector, float sum) {
    Shared<float> own = chunk.w + threadIdx.x * chunk.ld;
    for (int c = 0; c < chunk.width; c += 4)
        sum = add_dot(sum, load4(own + c), load4(vector + chunk.first + c));
    return sum;
}

// Warp by warp, W^T v for the chunk's columns, into scratch[warp * width].
__device__ __forceinline__ void combine(const Chunk& chunk, int n, Shared<float> v,
                                        Shared<float> scratch) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int c = 4 * lane; c < chunk.width; c += 128) {
        float4 sum = zero4();
        for (int i = warp; i < n; i += WARPS) sum = add_scaled(sum, v[i], load4(chunk.w + i * chunk.ld + c));
        store4(scratch + warp * chunk.width + c, sum);
    }
}

__device__ __forceinline__ float over_warps(const Chunk& chunk, int c, Shared<float> scratch) {
    float sum = 0.f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) sum += scratch[warp * chunk.width + c];
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
dual_block(HalfSweep problem, const int64* rows, int64 n_rows, int chunk_width) {
    SHARED_MEMORY(shared);
    const int stride = problem.stride;
    Shared<float> u = shared;
    Shared<float> diagonal = u + SIZE;
    Shared<float> tau = diagonal + SIZE;
    Shared<float> error = tau + SIZE;
    Shared<float> size = error + SIZE;
    Shared<int> index = shared_as<int>(size + SIZE);
    Shared<float> scratch = size + 2 * SIZE;
    Shared<float> z = scratch + kExchange * WARPS;
    Shared<float> scale = z + stride;
    const SharedPanels s = {scale + stride, SIZE};
    Shared<float> sums = s.at + panel_floats(SIZE);
    Chunk chunk = {sums + WARPS * chunk_width, chunk_width % 8 == 4 ? chunk_width : chunk_width + 4,
                   0, chunk_width};
    const int chunks = (stride + chunk_width - 1) / chunk_width;

    const int tid = threadIdx.x, lane = tid % 32, warp = tid / 32;
    const int tx = lane % 8 + warp % (EDGE / 8) * 8, ty = lane / 8 + warp / (EDGE / 8) * 4;
    Row row(problem, row_number(rows, n_rows, blockIdx.x), scale);
    row.fill_scale(problem, stride, tid, THREADS);
    int n = int(row.count);
    for (int i = tid; i < SIZE; i += THREADS) {
        Entry entry;
        if (i < n) entry = Entry(problem, row.first + i);
        index[i] = entry.index, size[i] = entry.size, tau[i] = entry.tau;
    }
    __syncthreads();
    for (int c = tid; c < stride; c += THREADS) z[c] = row.b0(problem, c) / row.shift;
    __syncthreads();

    const auto go_to_chunk = [&](int number) {
        chunk.first = number * chunk_width;
        chunk.width = min(chunk_width, stride - chunk.first);
    };
    // Step `turn` of a pass that begins where the last one ended.
    const auto next_chunk = [&](int turn, bool forward) {
        if (turn == 0) return;
        go_to_chunk(forward ? turn : chunks - 1 - turn);
        load_chunk(problem, row, index, size, chunk);
        __syncthreads();
    };

    // Gram, and the dual right-hand side of thread i's entry.
    float t = tid < SIZE ? tau[tid] : 0.f;
    float sum[TILES][TILES] = {};
    for (int turn = 0; turn < chunks; ++turn) {
        go_to_chunk(turn);
        if (turn > 0) __syncthreads();
        load_chunk(problem, row, index, size, chunk);
        __syncthreads();
#pragma unroll 1
        for (int c = 0; c < chunk.width; c += 4) {
            float4 left[TILES];
#pragma unroll
            for (int a = 0; a < TILES; ++a) left[a] = load4(chunk.w + (ty + EDGE * a) * chunk.ld + c);
#pragma unroll
            for (int b = 0; b < TILES; ++b) {
                const float4 right = load4(chunk.w + (tx + EDGE * b) * chunk.ld + c);
#pragma unroll
                for (int a = b; a < TILES; ++a) sum[a][b] = add_dot(sum[a][b], left[a], right);
            }
        }
        if (problem.b0 != nullptr && tid < n) t -= dot_row(chunk, z, 0.f);
    }
#pragma unroll
    for (int a = 0; a < TILES; ++a)
#pragma unroll
        for (int b = 0; b <= a; ++b) {
            const int r = ty + EDGE * a, c = tx + EDGE * b;
            float value = sum[a][b];
            if (r == c) diagonal[r] = value = r < n ? value + row.shift : 1.f;
            *s.element(r, c) = value;
        }
    // The panels may reach beyond M.
    for (int e = tid; e < (SIZE - M) * SIZE; e += THREADS) {
        const int r = M + e / SIZE, c = e % SIZE;
        if (c <= r) *s.element(r, c) = r == c ? 1.f : 0.f;
        if (r == c) diagonal[r] = 1.f;
    }
    if (tid < SIZE) *s.element(SIZE, tid) = t;
    __syncthreads();

    const int condition = factor<THREADS>(s, n, diagonal, scratch);
    take_right_hand_side(s, u);
    solve_back<THREADS>(s, u, scratch);

    // z = b0 / shift + W^T u, and the predictions q = W z.
    float q = 0.f;
    auto add_combination = [&](Shared<float> weights) {
        q = 0.f;
        for (int turn = 0; turn < chunks; ++turn) {
            next_chunk(turn, weights == error);
            combine(chunk, n, weights, sums);
            __syncthreads();
            for (int c = tid; c < chunk.width; c += THREADS)
                z[chunk.first + c] += over_warps(chunk, c, sums);
            __syncthreads();
            if (tid < n) q = dot_row(chunk, z, q);
            __syncthreads();
        }
    };
    // Once, or twice where refinement pays.
#pragma unroll 1
    for (Shared<float> weights = u;; weights = error) {
        // Loaded again: while systems are solved there is no register to spare for them.
        row = Row(problem, row_number(rows, n_rows, blockIdx.x), scale);
        n = int(row.count);
        add_combination(weights);
        if (weights == error || condition != kIll) break;
        if (tid < SIZE) error[tid] = tid < n ? tau[tid] - row.shift * u[tid] - q : 0.f;
        __syncthreads();
        solve_forward<THREADS>(s, error);
        solve_back<THREADS>(s, error, scratch);
    }

    // Check: residual = shift z + W^T (q - tau) - b0 against rhs = W^T tau + b0.
    float loss = 0.f, residual = 0.f, rhs = 0.f;
    if (tid < n) {
        error[tid] = q - tau[tid];
        loss = entry_loss(problem, q, 1.f, tau[tid]);
    }
    __syncthreads();
    for (int turn = 0; turn < chunks; ++turn) {
        next_chunk(turn, condition != kIll);
        combine(chunk, n, error, sums);
        __syncthreads();
        for (int c = tid; c < chunk.width; c += THREADS) {
            const float own = z[chunk.first + c], b0 = row.b0(problem, chunk.first + c);
            const float misfit = row.shift * own - b0 + over_warps(chunk, c, sums);
            residual = fmaf(misfit, misfit, residual);
            loss += own * (row.shift * own - 2.f * b0);
        }
        __syncthreads();
        combine(chunk, n, tau, sums);
        __syncthreads();
        for (int c = tid; c < chunk.width; c += THREADS) {
            const float target = row.b0(problem, chunk.first + c) + over_warps(chunk, c, sums);
            rhs = fmaf(target, target, rhs);
        }
        __syncthreads();
    }
    residual = block_sum<THREADS>(residual, scratch);
    rhs = block_sum<THREADS>(rhs, scratch);
    loss = block_sum<THREADS>(loss, scratch);
    const bool good = condition != kSingular && row.shift > 0.f;
    const float share = good ? relative(residual, rhs) : no_number();
    if (share <= problem.residual_limit)
        for (int c = tid; c < stride; c += THREADS)
            Global<float>(problem.z)[row.number * stride + c] = z[c] * row.scale_of(c);
    if (tid == 0) {
        Global<float>(problem.residual)[row.number] = share;
        Global<float>(problem.bound)[row.number] = residual / row.shift;
        Global<float>(problem.objective)[row.number] = loss;
    }
}
