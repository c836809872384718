// Rows of up to 8 TILES entries (at most 32) in their dual form, one warp for each row.
//
//     S = shift I + W W^T,    S u = tau - W b0 / shift,    z = b0 / shift + W^T u
//
// (Push-through form; docs/mathematics.md, "The dual form".) Where S is ill-conditioned, one step of
// iterative refinement follows: S du = tau - shift u - W z.
//
// Thread mapping. Gathering: consecutive lanes take consecutive 16-byte pieces of W. Gram: with
// i = lane % 8 and j = lane / 8 a lane computes S[i + 8a][j + 8b] and S[i + 8a][j + 4 + 8b] for
// all a >= b; W is read 16 bytes at a time along its rows. Factorisation: lane i holds row i.
// z: lanes over columns. Predictions: lane i holds entry i.
//
// Shared memory for each warp (dual_warp_floats in launch.py): W once, the only copy of the
// gathered rows, padded so that 16-byte reads of eight neighbouring rows meet no bank conflict;
// the (N, N + 4) system likewise; z; and the columns' scale. Every row of `fixed` is read from
// global memory exactly once.
//
// Macros: TILES (1..4), WARPS (rows for each block).
#include "cholesky.cuh"

constexpr int N = 8 * TILES;
constexpr int LD = N + 4;
constexpr int kAhead = 4;  // rows of W that a lane has on their way

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
dual_warp(HalfSweep problem, const int64* rows, int64 n_rows) {
    SHARED_MEMORY(shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64 turn = int64(blockIdx.x) * WARPS + warp;
    if (turn >= n_rows) return;  // a whole warp; there is no barrier of the block here
    const int stride = problem.stride, quads = stride / 4;
    const int ld = stride % 8 == 4 ? stride : stride + 4;  // 4 mod 8
    Shared<float> places = shared + warp * (kExchange + N + N * ld + 2 * stride + N * LD);
    Shared<float> y = places + kExchange;  // right-hand side, later errors of the predictions
    Shared<float> w = y + N;
    Shared<float> z = w + N * ld;  // first b0 / shift, then the solution
    Shared<float> s = z + stride;
    Shared<float> scale = s + N * LD;

    Row row(problem, row_number(rows, n_rows, turn), scale);
    row.fill_scale(problem, stride, lane, 32);
    const int n = int(row.count);
    Entry entry;
    if (lane < n) entry = Entry(problem, row.first + lane);

    __syncwarp();

    // Gather, as many rows at a time as a warp's lanes can share, and kAhead times as many on their
    // way. Rows beyond n are zero.
    const int lanes = lanes_for(quads), rows_at_once = 32 / lanes;
    for (int base = 0; base < N; base += kAhead * rows_at_once) {
        int index[kAhead];
        float size[kAhead];
#pragma unroll
        for (int a = 0; a < kAhead; ++a) {
            const int i = base + a * rows_at_once + lane / lanes;
            index[a] = __shfl_sync(kFullWarp, entry.index, i);
            size[a] = __shfl_sync(kFullWarp, entry.size, i);
        }
        for (int c = 4 * (lane % lanes); c < stride; c += 4 * lanes) {
            float4 held[kAhead];
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                held[a] = zero4();
                if (base + a * rows_at_once + lane / lanes < n)
                    held[a] = load_factors(problem, index[a], c);
            }
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                const int i = base + a * rows_at_once + lane / lanes;
                if (i < N) store4(w + i * ld + c, scaled(row, held[a], size[a], c));
            }
        }
    }
    float t = entry.tau;  // right-hand side of the dual system
    if (problem.b0 != nullptr) {
        for (int c = lane; c < stride; c += 32) z[c] = row.b0(problem, c) / row.shift;
        __syncwarp();
        if (lane < N)
            for (int c = 0; c < stride; c += 4) t -= add_dot(0.f, load4(w + lane * ld + c), load4(z + c));
    }
    __syncwarp();

    // Gram.
    {
        const int i = lane % 8, j = lane / 8;
        float sum[2][TILES][TILES] = {};
        for (int c = 0; c < stride; c += 4) {
            float4 left[TILES];
#pragma unroll
            for (int a = 0; a < TILES; ++a) left[a] = load4(w + (i + 8 * a) * ld + c);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int b = 0; b < TILES; ++b) {
                    const float4 right = load4(w + (j + 4 * h + 8 * b) * ld + c);
#pragma unroll
                    for (int a = b; a < TILES; ++a)
                        sum[h][a][b] = add_dot(sum[h][a][b], left[a], right);
                }
        }
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int b = 0; b < TILES; ++b)
#pragma unroll
                for (int a = b; a < TILES; ++a)
                    s[(i + 8 * a) * LD + j + 4 * h + 8 * b] = sum[h][a][b];
    }
    __syncwarp();

    // Factor and solve: every lane gets all of u.
    const int own = min(lane, N - 1);
    const float diagonal = own < n ? s[own * LD + own] + row.shift : 1.f;
    __syncwarp();
    s[own * LD + own] = diagonal;
    if (lane < N) y[lane] = t;
    __syncwarp();
    float a[N], u[N];
    load_row(a, s + own * LD);
    load_row(u, y);
    eliminate(a, u, n, places);
    __syncwarp();
    store_row(s + own * LD, a);
    __syncwarp();
    const int own_condition = condition_of(diagonal, s[own * LD + own], N);
    const bool singular = __any_sync(kFullWarp, own_condition == kSingular) || !(row.shift > 0.f);
    const bool refine = __any_sync(kFullWarp, own_condition == kIll) && !singular;
    substitute_back(u, s, LD);
    store_row(y, u);
    __syncwarp();

    // z = b0 / shift + W^T u, and the predictions q = W z, lane i that of entry i. Once, or twice
    // where refinement pays.
    float q = 0.f;
#pragma unroll 1
    for (bool again = false;; again = true) {
        for (int c = 4 * lane; c < stride; c += 128) {
            float4 sum = again || problem.b0 != nullptr ? load4(z + c) : zero4();
#pragma unroll 4
            for (int i = 0; i < n; ++i) sum = add_scaled(sum, y[i], load4(w + i * ld + c));
            store4(z + c, sum);
        }
        __syncwarp();
        q = 0.f;
        if (lane < n)
            for (int c = 0; c < stride; c += 4)
                q = add_dot(q, load4(w + lane * ld + c), load4(z + c));
        if (again || !refine) break;
        const float left = lane < n ? entry.tau - row.shift * y[own] - q : 0.f;
        __syncwarp();
        if (lane < N) y[lane] = left;
        __syncwarp();
        load_row(u, y);
        substitute_forward(u, s, LD);
        substitute_back(u, s, LD);
        __syncwarp();
        store_row(y, u);
        __syncwarp();
    }

    // Check: residual = shift z + W^T (q - tau) - b0 against rhs = W^T tau + b0.
    const float error = q - entry.tau;
    float loss = lane < n ? entry_loss(problem, q, 1.f, entry.tau) : 0.f;
    if (lane < N) y[lane] = error;
    if (lane < N) places[lane] = entry.tau;
    __syncwarp();
    float residual = 0.f, rhs = 0.f;
    for (int c = lane; c < stride; c += 32) {
        const float b0 = row.b0(problem, c);
        float misfit = row.shift * z[c] - b0, target = b0;
        for (int i = 0; i < n; ++i) {
            const float value = w[i * ld + c];
            misfit = fmaf(y[i], value, misfit);
            target = fmaf(places[i], value, target);
        }
        residual = fmaf(misfit, misfit, residual);
        rhs = fmaf(target, target, rhs);
        loss += z[c] * (row.shift * z[c] - 2.f * b0);
    }
    residual = group_sum(residual);
    float share = relative(residual, group_sum(rhs));
    loss = group_sum(loss);
    if (singular) share = no_number();
    if (share <= problem.residual_limit)
        for (int c = lane; c < stride; c += 32)
            Global<float>(problem.z)[row.number * stride + c] = z[c] * row.scale_of(c);
    if (lane == 0) {
        Global<float>(problem.residual)[row.number] = share;
        Global<float>(problem.bound)[row.number] = residual / row.shift;
        Global<float>(problem.objective)[row.number] = loss;
    }
}
