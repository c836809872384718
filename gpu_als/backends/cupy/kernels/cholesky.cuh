// Cholesky factorisation and solution of one positive definite system.
//
// One warp, up to 32 x 32: lane i holds row i in registers, columns are eliminated from left to
// right. With the same numbers each lane eliminates one more row, which belongs to it alone.
//
// One block, larger: the lower triangle lies in shared memory in panels of 32 columns (Panels).
// Left-looking: a panel first takes off what the finished panels contribute, in 4 x 4 register
// tiles of inner products; then every warp factors the panel's 32 x 32 diagonal block for itself
// and eliminates 32 rows below it. That spares the broadcast of the diagonal block and a separate
// triangular solve. The right-hand side rides along as one more row below the matrix, so the
// forward solution costs nothing extra.
//
// Nothing here shuffles: a column of L travels through shared memory, where one 16-byte read
// serves four columns, and short triangular solutions are done by all lanes alike. No step asks
// which lanes it concerns: lanes whose row is finished, and elements above the diagonal, go on
// with numbers that nobody reads.
//
// Shared memory: 36 floats a row and panel; 36 = 4 mod 32 keeps 16-byte reads of eight
// neighbouring rows free of bank conflicts.
#pragma once
#include "half_sweep.cuh"
#include "reduce.cuh"

constexpr int kPanel = 32;
constexpr int kPanelStride = 36;

// Floats that the panels of a matrix of `size` (a multiple of 32) rows take, right-hand side
// included.
__host__ __device__ constexpr int panel_floats(int size) {
    const int panels = size / kPanel;
    return kPanelStride * (panels * (size + 1) - 16 * panels * (panels - 1));
}

// The lower triangle of a (size, size) matrix and, as row `size`, a right-hand side. Panel p has
// the columns 32 p to 32 p + 31 and the rows from 32 p on. Above the diagonal nothing is defined.
template <class Pointer>
struct Panels {
    Pointer at;
    int size;  // a multiple of 32

    // First column of panel p in row r >= 32 p.
    __device__ __forceinline__ Pointer row(int p, int r) const {
        return at + kPanelStride * (p * (size + 1) - 16 * p * (p - 1) + r - kPanel * p);
    }
    // Element (r, c) for r >= c.
    __device__ __forceinline__ Pointer element(int r, int c) const {
        return row(c / kPanel, r) + c % kPanel;
    }
};

using SharedPanels = Panels<Shared<float>>;

// Floats through which one warp exchanges a column. Two places take turns, so that nobody
// overwrites what a slower lane still reads.
constexpr int kExchange = 64;

// row[l] -= column[l] * factor for l > j
template <int N>
__device__ __forceinline__ void take_off(float (&row)[N], float factor, Shared<float> column,
                                         int j) {
#pragma unroll
    for (int l = (j + 1) / 4 * 4; l < N; l += 4) {
        const float4 v = load4(column + l);
        if (l > j) row[l] = fmaf(-factor, v.x, row[l]);
        if (l + 1 > j) row[l + 1] = fmaf(-factor, v.y, row[l + 1]);
        if (l + 2 > j) row[l + 2] = fmaf(-factor, v.z, row[l + 2]);
        if (l + 3 > j) row[l + 3] = fmaf(-factor, v.w, row[l + 3]);
    }
}

// One warp: `a` is row `lane` of an (N, N) matrix and becomes the row of L; `x` becomes x L^-T.
// From column `active` on the matrix is the identity.
template <int N>
__device__ __forceinline__ void eliminate(float (&a)[N], float (&x)[N], int active,
                                          Shared<float> places) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        // Besides sparing work, the branch keeps the compiler from putting the updates off, which
        // would need registers for all of L.
        if (j >= active) break;
        Shared<float> column = places + 32 * (j % 2);
        column[threadIdx.x % 32] = a[j];
        __syncwarp();
        const float inverse = rsqrtf(column[j]);
        a[j] *= inverse;
        x[j] *= inverse;
        take_off(a, a[j] * inverse, column, j);
        take_off(x, x[j] * inverse, column, j);
    }
}

// Every lane alike: `y` becomes L^-T y; row j of L lies at rows + j * ld.
template <int N>
__device__ __forceinline__ void substitute_back(float (&y)[N], Shared<float> rows, int ld) {
#pragma unroll
    for (int j = N - 1; j >= 0; --j) {
        // Keeps the compiler from loading all of L at once, more than it has registers for.
        if (j % 2 == 1) __syncwarp();
        Shared<float> row = rows + j * ld;
        y[j] = __fdividef(y[j], row[j]);
#pragma unroll
        for (int l = 0; l < j; l += 4) {
            const float4 v = load4(row + l);
            y[l] = fmaf(-y[j], v.x, y[l]);
            if (l + 1 < j) y[l + 1] = fmaf(-y[j], v.y, y[l + 1]);
            if (l + 2 < j) y[l + 2] = fmaf(-y[j], v.z, y[l + 2]);
            if (l + 3 < j) y[l + 3] = fmaf(-y[j], v.w, y[l + 3]);
        }
    }
}

// Every lane alike: `y` becomes L^-1 y.
template <int N>
__device__ __forceinline__ void substitute_forward(float (&y)[N], Shared<float> rows, int ld) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        if (j % 4 == 0) __syncwarp();  // as in substitute_back
        Shared<float> row = rows + j * ld;
        float sum = y[j];
#pragma unroll
        for (int l = 0; l < j; l += 4) {
            const float4 v = load4(row + l);
            sum = fmaf(-v.x, y[l], sum);
            if (l + 1 < j) sum = fmaf(-v.y, y[l + 1], sum);
            if (l + 2 < j) sum = fmaf(-v.z, y[l + 2], sum);
            if (l + 3 < j) sum = fmaf(-v.w, y[l + 3], sum);
        }
        y[j] = __fdividef(sum, row[j]);
    }
}

template <int N>
__device__ __forceinline__ void load_row(float (&a)[N], Shared<float> from) {
#pragma unroll
    for (int c = 0; c < N; c += 4) {
        const float4 v = load4(from + c);
        a[c] = v.x, a[c + 1] = v.y, a[c + 2] = v.z, a[c + 3] = v.w;
    }
}

template <int N>
__device__ __forceinline__ void store_row(Shared<float> to, const float (&a)[N]) {
#pragma unroll
    for (int c = 0; c < N; c += 4) store4(to + c, make_float4(a[c], a[c + 1], a[c + 2], a[c + 3]));
}

// Takes off panel p what the panels before it contribute.
template <int THREADS>
__device__ __forceinline__ void update_panel(SharedPanels matrix, int p) {
    constexpr int kHeight = THREADS / 8;
    const int tx = threadIdx.x % 8, ty = threadIdx.x / 8;
    const int first = kPanel * p, rows = matrix.size + 1 - first;
#pragma unroll 1
    for (int top = ty; top < rows; top += 4 * kHeight) {
        float sum[4][4] = {};
        int r[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) r[e] = first + min(top + kHeight * e, rows - 1);
#pragma unroll 1
        for (int q = 0; q < p; ++q) {
#pragma unroll 2
            for (int l = 0; l < kPanel; l += 4) {
                float4 left[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) left[e] = load4(matrix.row(q, r[e]) + l);
#pragma unroll
                for (int f = 0; f < 4; ++f) {
                    const float4 right = load4(matrix.row(q, first + tx + 8 * f) + l);
#pragma unroll
                    for (int e = 0; e < 4; ++e) sum[e][f] = add_dot(sum[e][f], left[e], right);
                }
            }
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            if (top + kHeight * e >= rows) continue;
            Shared<float> to = matrix.row(p, r[e]);
#pragma unroll
            for (int f = 0; f < 4; ++f) to[tx + 8 * f] -= sum[e][f];
        }
    }
}

// How a factored matrix looks, by the largest ratio of a diagonal element to its pivot. Solutions in
// float32 are off by about 1e-6 times that ratio, so from 16 on they are worth a step of iterative
// refinement; where a pivot is no more than rounding noise there is no solution.
constexpr int kGood = 0, kIll = 1, kSingular = 2;

__device__ __forceinline__ int condition_of(float diagonal, float root, int size) {
    const float ratio = __fdividef(diagonal, root * root);
    return ratio <= 16.f ? kGood : (ratio * (size * kEpsilon) < 1.f ? kIll : kSingular);
}

// Factors the matrix in place and turns its right-hand side into L^-1 rhs. `diagonal` holds the
// matrix's diagonal; `scratch` has room for kExchange floats for each warp. The whole block calls
// it, after the matrix is complete; returns, to every thread, how the matrix looks. From column
// `active` on it is the identity.
template <int THREADS>
__device__ int factor(SharedPanels matrix, int active, Shared<float> diagonal,
                        Shared<float> scratch) {
    const int thread = read_thread_number(), lane = thread % 32, warp = thread / 32;
#pragma unroll 1  // one copy of the code: it is long
    for (int p = 0; p < matrix.size / kPanel; ++p) {
        if (p > 0) {
            update_panel<THREADS>(matrix, p);
            __syncthreads();
        }
        const int own = kPanel * p + lane;            // row of the diagonal block
        const int below = own + kPanel * (warp + 1);  // row this lane eliminates
        // There are enough warps for all rows below: launch.py keeps size <= THREADS.
        const bool busy = kPanel * (p + 1 + warp) <= matrix.size;
        float a[kPanel], x[kPanel] = {};
        if (busy) {
            load_row(a, matrix.row(p, own));
            if (below <= matrix.size) load_row(x, matrix.row(p, below));
        }
        __syncthreads();
        if (busy) {
            eliminate(a, x, active - kPanel * p, scratch + kExchange * warp);
            if (warp == 0) store_row(matrix.row(p, own), a);
            if (below <= matrix.size) store_row(matrix.row(p, below), x);
        }
        __syncthreads();
    }
    const int r = read_thread_number();
    int condition = kGood;
    if (r < matrix.size) condition = condition_of(diagonal[r], *matrix.element(r, r), matrix.size);
    if (__syncthreads_or(condition == kSingular)) return kSingular;
    return __syncthreads_or(condition == kIll) ? kIll : kGood;
}

// Reads the right-hand side that `factor` left into y, shape (size,).
__device__ __forceinline__ void take_right_hand_side(SharedPanels matrix, Shared<float> y) {
    const int c = read_thread_number();
    if (c < matrix.size) y[c] = *matrix.element(matrix.size, c);
    __syncthreads();
}

// y becomes L^-1 y, shape (size,).
template <int THREADS>
__device__ void solve_forward(SharedPanels matrix, Shared<float> y) {
#pragma unroll 1
    for (int p = 0; p < matrix.size / kPanel; ++p) {
        const int first = kPanel * p;
        if (threadIdx.x < 32) {
            float own[kPanel];
            load_row(own, y + first);
            substitute_forward(own, matrix.row(p, first), kPanelStride);
            __syncwarp();
            store_row(y + first, own);
        }
        __syncthreads();
        const int r = first + kPanel + threadIdx.x;
        if (r < matrix.size) {
            Shared<float> row = matrix.row(p, r);
            float sum = 0.f;
            for (int c = 0; c < kPanel; c += 4) sum = add_dot(sum, load4(row + c), load4(y + first + c));
            y[r] -= sum;
        }
        __syncthreads();
    }
}

// y becomes L^-T y, shape (size,). `scratch` has room for 32 floats for each warp.
template <int THREADS>
__device__ void solve_back(SharedPanels matrix, Shared<float> y, Shared<float> scratch) {
    const int thread = read_thread_number(), lane = thread % 32, warp = thread / 32;
#pragma unroll 1
    for (int p = matrix.size / kPanel - 1; p >= 0; --p) {
        const int first = kPanel * p;
        float sum = 0.f;
        for (int r = first + kPanel + warp; r < matrix.size; r += THREADS / 32)
            sum = fmaf(matrix.row(p, r)[lane], y[r], sum);
        scratch[32 * warp + lane] = sum;
        __syncthreads();
        if (warp == 0) {
            float known = 0.f;
#pragma unroll
            for (int w = 0; w < THREADS / 32; ++w) known += scratch[32 * w + lane];
            y[first + lane] -= known;
            __syncwarp();
            float own[kPanel];
            load_row(own, y + first);
            substitute_back(own, matrix.row(p, first), kPanelStride);
            __syncwarp();
            store_row(y + first, own);
        }
        __syncthreads();
    }
}
