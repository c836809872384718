// The half-sweep as every kernel receives it, and how an entry's row is loaded.
//
// Row u solves (shift I + W^T sign W) z = b0 + W^T tau with W = root * fixed_rows * scale_u, the
// one form all objectives take (gpu_als/core/basis.py). In frames with a ridge for each row
// the columns are scaled by scale_u = (eigenvalues + ridge_u)^(-1/2) while they are loaded and
// shift is 1; `z` then holds scale_u * z, so that leaving the frame is one product for all rows.
#pragma once
#include "memory.cuh"

// Mirrored by HALF_SWEEP in launch.py; a test holds the two layouts together.
struct HalfSweep {
    const int64* indptr;       // (n_rows + 1)
    const int* indices;        // (nnz)
    const float* root;         // (nnz) sqrt|g| with the sign of g, or null: 1
    const float* tau;          // (nnz) targets / |root|
    const float* offset;       // (n_fixed) biases of the fixed side, or null
    const void* fixed;         // (n_fixed, stride) of float, or of float16 as unsigned short
    const float* eigenvalues;  // (stride), or null: columns are not scaled
    const float* ridge;        // (n_rows), or null: ridge_all
    const float* base;         // (k, k), or null
    const float* b0;           // (n_rows, stride) before scaling, or null
    float* z;                  // (n_rows, stride): in, where iterative solvers start; out
    float* residual;           // (n_rows) |lhs z - rhs| / |rhs|, NaN where the row was not solved
    float* bound;              // (n_rows) |lhs z - rhs|^2 / shift: how far z is from its best at most
    float* objective;          // (n_rows) what the row adds to the objective
    float ridge_all;
    float residual_limit;      // rows above it keep their z
    int k;                     // factors
    int stride;                // k rounded up to a multiple of 4; columns beyond k are zero
    int squared_loss;          // the loss is sum (tau - q)^2, else sum q (sign q - 2 tau)
    int steps;                 // of conjugate gradients
    int free_columns;          // last columns that may be negative, of non-negative solves
};

constexpr float kEpsilon = 1.1920929e-07f;
constexpr float kTiny = 1.17549435e-38f;

// NaN
__device__ __forceinline__ float no_number() {
    return __int_as_float(0x7fffffff);
}

#ifdef STORED_HALF
using Stored = unsigned short;

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#else
using Stored = float;
#endif

__device__ __forceinline__ float4 operator*(float4 a, float s) {
    return make_float4(a.x * s, a.y * s, a.z * s, a.w * s);
}
__device__ __forceinline__ float4 operator*(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 add_scaled(float4 a, float s, float4 b) {
    return make_float4(fmaf(s, b.x, a.x), fmaf(s, b.y, a.y), fmaf(s, b.z, a.z), fmaf(s, b.w, a.w));
}
__device__ __forceinline__ float add_dot(float sum, float4 a, float4 b) {
    return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, fmaf(a.w, b.w, sum))));
}
__device__ __forceinline__ float4 zero4() {
    return make_float4(0.f, 0.f, 0.f, 0.f);
}

// The row that falls to block (or warp) `turn` of a launch. Rows come shortest first, and blocks begin
// in order: the longest rows have to, for none of them to begin when all others are done.
__device__ __forceinline__ int64 row_number(Global<const int64> rows, int64 n_rows, int64 turn) {
    return rows[n_rows - 1 - turn];
}

// One row's share of the half-sweep: everything but its entries.
struct Row {
    int64 number;
    int64 first;  // of its entries
    int64 count;
    float shift;
    bool scaled;
    Shared<float> scale;  // scale_u, where columns are scaled

    __device__ __forceinline__ Row(const HalfSweep& problem, int64 number_, Shared<float> scale_)
        : number(number_), scale(scale_) {
        Global<const int64> indptr = problem.indptr;
        first = indptr[number];
        count = indptr[number + 1] - first;
        scaled = problem.eigenvalues != nullptr;
        shift = scaled ? 1.f : ridge(problem);
    }

    __device__ __forceinline__ float ridge(const HalfSweep& problem) const {
        return problem.ridge == nullptr ? problem.ridge_all
                                        : float(Global<const float>(problem.ridge)[number]);
    }

    // Works out scale_u of `width` columns, by the caller's `threads` threads, which then have to
    // meet at a barrier.
    __device__ __forceinline__ void fill_scale(const HalfSweep& problem, int width, int thread,
                                               int threads) {
        if (!scaled) return;
        Global<const float> eigenvalues = problem.eigenvalues;
        const float own = ridge(problem);
        for (int c = thread; c < width; c += threads)
            scale[c] = c < problem.k ? rsqrtf(eigenvalues[c] + own) : 1.f;
    }

    __device__ __forceinline__ float scale_of(int c) const {
        return scaled ? float(scale[c]) : 1.f;
    }

    // b0 of column c
    __device__ __forceinline__ float b0(const HalfSweep& problem, int c) const {
        if (problem.b0 == nullptr || c >= problem.stride) return 0.f;
        return Global<const float>(problem.b0)[number * problem.stride + c] * scale_of(c);
    }
};

// One entry without its row of factors: W = size * factors.
struct Entry {
    int index;
    float size;  // |root|
    float sign;
    float tau;

    __device__ Entry() : index(0), size(0.f), sign(1.f), tau(0.f) {}

    __device__ Entry(const HalfSweep& problem, int64 place) {
        index = Global<const int>(problem.indices)[place];
        const float root = problem.root == nullptr ? 1.f : Global<const float>(problem.root)[place];
        size = fabsf(root);
        sign = root < 0.f ? -1.f : 1.f;
        tau = Global<const float>(problem.tau)[place];
        if (problem.offset != nullptr) tau -= size * Global<const float>(problem.offset)[index];
    }
};

// fixed[index, c .. c + 3], c a multiple of 4
__device__ __forceinline__ float4 load_factors(const HalfSweep& problem, int index, int c) {
    Global<const Stored> fixed = static_cast<const Stored*>(problem.fixed);
    const int64 place = int64(index) * problem.stride + c;
#ifdef STORED_HALF
    const ushort4 halves = load4(fixed + place);
    return make_float4(half_to_float(halves.x), half_to_float(halves.y), half_to_float(halves.z),
                       half_to_float(halves.w));
#else
    return load4(fixed + place);
#endif
}

// W of an entry, columns c .. c + 3, given its factors
__device__ __forceinline__ float4 scaled(const Row& row, float4 factors, float size, int c) {
    const float4 w = factors * size;
    return row.scaled ? w * load4(row.scale + c) : w;
}

// How many lanes share a row of `quads` 16-byte pieces: a power of two, at most a warp.
__device__ __forceinline__ int lanes_for(int quads) {
    return quads > 16 ? 32 : (quads > 8 ? 16 : (quads > 4 ? 8 : 4));
}

// What one entry adds to the objective, with prediction q = W z.
__device__ __forceinline__ float entry_loss(const HalfSweep& problem, float q, float sign,
                                            float tau) {
    return problem.squared_loss ? (tau - q) * (tau - q) : q * (sign * q - 2.f * tau);
}

// |residual| / |rhs| from their squares; NaN stays NaN.
__device__ __forceinline__ float relative(float residual, float rhs) {
    return sqrtf(residual) / fmaxf(sqrtf(rhs), kTiny);
}
