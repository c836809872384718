// One (k, k) system in shared memory, solved in one of three ways, and the result's way out.
//
// The system is complete except for what all rows share: `finish_system` adds shift, base and b0.
// Then SOLVER picks what happens to it: CHOLESKY, CONJUGATE_GRADIENT or NON_NEGATIVE. Each leaves
// z in shared memory and returns how the matrix looks (cholesky.cuh), kSingular where it failed; `Vectors` is the shared memory besides the panels.
#pragma once
#include "cholesky.cuh"

#define CHOLESKY 0
#define CONJUGATE_GRADIENT 1
#define NON_NEGATIVE 2

template <int THREADS, int SIZE>
struct Vectors {
    Shared<float> z, rhs, diagonal, scale, squares, scratch;

    static constexpr int kFloats = 4 * SIZE + 4 + kExchange * (THREADS / 32);

    __device__ __forceinline__ explicit Vectors(Shared<float> at)
        : z(at),
          rhs(at + SIZE),
          diagonal(at + 2 * SIZE),
          scale(at + 3 * SIZE),
          squares(at + 4 * SIZE),
          scratch(at + 4 * SIZE + 4) {}
};

// The row `number`; a barrier has to follow.
template <int THREADS, int SIZE>
__device__ __forceinline__ Row row_of(const HalfSweep& problem, int64 number,
                                      const Vectors<THREADS, SIZE>& v) {
    Row row(problem, number, v.scale);
    row.fill_scale(problem, SIZE, threadIdx.x, THREADS);
    return row;
}

// Adds shift, base and b0 to W^T sign W and W^T tau; columns from k on become the identity.
template <int THREADS, int SIZE>
__device__ __forceinline__ void finish_system(const HalfSweep& problem, const Row& row,
                                              SharedPanels lhs, const Vectors<THREADS, SIZE>& v) {
    if (problem.base != nullptr) {
        Global<const float> base = problem.base;
        for (int e = threadIdx.x; e < problem.k * problem.k; e += THREADS) {
            const int r = e / problem.k, c = e % problem.k;
            if (c <= r) *lhs.element(r, c) += base[e];
        }
        __syncthreads();
    }
    for (int c = threadIdx.x; c < SIZE; c += THREADS) {
        Shared<float> corner = lhs.element(c, c);
        v.diagonal[c] = *corner = c < problem.k ? *corner + row.shift : 1.f;
        Shared<float> target = lhs.element(SIZE, c);
        v.rhs[c] = *target += row.b0(problem, c);
    }
    __syncthreads();
}

// Product of the symmetric matrix whose lower triangle is `lhs` with `x`, row threadIdx.x.
template <int SIZE, class Pointer>
__device__ __forceinline__ float multiply_row(Panels<Pointer> lhs, Shared<float> x) {
    const int r = threadIdx.x;
    if (r >= SIZE) return 0.f;
    float sum = 0.f;
    int c = 0;
    for (; c + 3 <= r; c += 4) sum = add_dot(sum, load4(lhs.element(r, c)), load4(x + c));
    for (; c <= r; ++c) sum = fmaf(*lhs.element(r, c), x[c], sum);
    for (; c < SIZE; ++c) sum = fmaf(*lhs.element(c, r), x[c], sum);
    return sum;
}

#if SOLVER == CHOLESKY

template <int THREADS, int SIZE>
struct SystemSolver {
    static constexpr int kFloats = 0;

    static __device__ int solve(const HalfSweep& problem, const Row&, SharedPanels lhs,
                                  const Vectors<THREADS, SIZE>& v, Shared<float>) {
        const int condition = factor<THREADS>(lhs, problem.k, v.diagonal, v.scratch);
        take_right_hand_side(lhs, v.z);
        solve_back<THREADS>(lhs, v.z, v.scratch);
        return condition;
    }
};

#elif SOLVER == CONJUGATE_GRADIENT

// The largest power of two that is not above x; 1 where x is no normal number.
__device__ __forceinline__ float power_below(float x) {
    return x >= kTiny && x - x == 0.f ? __int_as_float(__float_as_int(x) & 0x7f800000) : 1.f;
}

// gpu_als/core/cg.py, for one system.
template <int THREADS, int SIZE>
struct SystemSolver {
    static constexpr int kFloats = SIZE;

    static __device__ int solve(const HalfSweep& problem, const Row& row, SharedPanels lhs,
                                 const Vectors<THREADS, SIZE>& v, Shared<float> direction) {
        const int c = threadIdx.x;
        float z = 0.f;
        if (c < problem.k)
            z = Global<const float>(problem.z)[row.number * problem.stride + c] /
                row.scale_of(c);
        if (c < SIZE) direction[c] = z;
        __syncthreads();
        float residual = c < SIZE ? v.rhs[c] - multiply_row<SIZE>(lhs, direction) : 0.f;
        __syncthreads();
        // Everything is homogeneous in the residual; a power of two changes no digit.
        const float size = power_below(block_max<THREADS>(fabsf(residual), v.scratch));
        residual /= size;
        if (c < SIZE) direction[c] = residual;
        float energy = block_sum<THREADS>(residual * residual, v.scratch);
        const float target = c < SIZE ? v.rhs[c] / size : 0.f;
        const float noise =
            64.f * kEpsilon * kEpsilon * block_sum<THREADS>(target * target, v.scratch);
        float square = energy, steepest = 0.f;  // |direction|^2, largest curvature for it
        for (int step = 0; step < problem.steps; ++step) {
            __syncthreads();
            const float own = c < SIZE ? direction[c] : 0.f;
            const float image = multiply_row<SIZE>(lhs, direction);
            const float curvature = block_sum<THREADS>(own * image, v.scratch);
            steepest = fmaxf(steepest, curvature / fmaxf(square, kTiny));
            // A step along what is only noise could have any length: there is none.
            const bool regular = curvature > kTiny && curvature > kEpsilon * steepest * square &&
                                 energy > noise;
            const float length = regular ? energy / curvature : 0.f * curvature;
            z = fmaf(size * length, own, z);
            residual = fmaf(-length, image, residual);
            const float former = energy;
            energy = block_sum<THREADS>(residual * residual, v.scratch);
            const float next = fmaf(former > kTiny ? energy / former : 0.f, own, residual);
            square = block_sum<THREADS>(next * next, v.scratch);
            if (c < SIZE) direction[c] = next;
        }
        if (c < SIZE) v.z[c] = z;
        return __syncthreads_and(z - z == 0.f) ? kGood : kSingular;  // finite
    }
};

#else

// gpu_als/backends/nnls.py, for one system: block principal pivoting.
template <int THREADS, int SIZE>
struct SystemSolver {
    static constexpr int kFloats = panel_floats(SIZE);

    static __device__ int solve(const HalfSweep& problem, const Row&, SharedPanels lhs,
                                 const Vectors<THREADS, SIZE>& v, Shared<float> at) {
        const SharedPanels trial = {at, SIZE};
        const int c = threadIdx.x, warp = threadIdx.x / 32;
        const bool bound = c < problem.k - problem.free_columns;
        const float eps = 4 * problem.k * kEpsilon;
        bool passive = true;
        int fewest = problem.k + 1, patience = 3;
        for (int round = 0; round < 5 * problem.k + 10; ++round) {
            // The system on the passive set, the identity elsewhere.
            if (c < SIZE) v.z[c] = passive ? 1.f : 0.f;
            __syncthreads();
            for (int r = warp; r <= SIZE; r += THREADS / 32)
                for (int l = c % 32; l < min(r + 1, SIZE); l += 32) {
                    const float kept = r < SIZE ? v.z[r] * v.z[l] : v.z[l];
                    const float value = r < SIZE ? *lhs.element(r, l) : v.rhs[l];
                    *trial.element(r, l) = kept != 0.f ? value : (r == l ? 1.f : 0.f);
                }
            if (c < SIZE) v.diagonal[c] = passive ? *lhs.element(c, c) : 1.f;
            __syncthreads();
            const int condition = factor<THREADS>(trial, problem.k, v.diagonal, v.scratch);
            if (condition == kSingular) return kSingular;
            take_right_hand_side(trial, v.z);
            solve_back<THREADS>(trial, v.z, v.scratch);
            if (c < SIZE && !passive) v.z[c] = 0.f;
            __syncthreads();
            // Signs below the rounding error of the products are not violations.
            const float x = c < SIZE ? v.z[c] : 0.f, target = c < SIZE ? v.rhs[c] : 0.f;
            const float y = multiply_row<SIZE>(lhs, v.z) - target;
            const float x_noise = eps * block_max<THREADS>(fabsf(x), v.scratch);
            const float y_noise = eps * block_max<THREADS>(fabsf(target), v.scratch);
            const bool violates = bound && (passive ? x < -x_noise : y < -y_noise);
            const int count = __syncthreads_count(violates);
            if (count == 0) {
                if (bound) v.z[c] = fmaxf(x, 0.f);
                __syncthreads();
                return condition;
            }
            patience = count < fewest ? 3 : patience - 1;
            fewest = min(count, fewest);
            // The last violating column, when all at once did not help (Murty's rule).
            const float last = block_max<THREADS>(violates ? float(c) : -1.f, v.scratch);
            if (violates && (patience >= 0 || float(c) == last)) passive = !passive;
            __syncthreads();
        }
        return kSingular;
    }
};

#endif

// What the entries say of z: W^T (sign W z - tau), in `sums`, and their loss.
//
// Made into the misfit lhs z - rhs, in `sums`; returned is what a thread adds to the objective.
template <int THREADS, int SIZE>
__device__ __forceinline__ float complete_misfit(const HalfSweep& problem, const Row& row,
                                                 Shared<float> sums,
                                                 const Vectors<THREADS, SIZE>& v) {
    float rest = 0.f;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) {
        const float z = v.z[c], b0 = row.b0(problem, c);
        float own = row.shift * z;
        if (problem.base != nullptr && c < problem.k)
            for (int l = 0; l < problem.k; ++l)
                own = fmaf(Global<const float>(problem.base)[int64(l) * problem.k + c], v.z[l], own);
        sums[c] = c < problem.k ? sums[c] + own - b0 : 0.f;
        rest += z * (own - 2.f * b0);
    }
    return rest;
}

// The same from the complete system: the misfit goes to `sums`. As the entries' loss is
// tau^T tau - 2 z^T W^T tau + z^T W^T sign W z (the first term for squared losses only), what is left
// of the objective is z^T (misfit - rhs).
template <int THREADS, int SIZE, class Pointer>
__device__ __forceinline__ float misfit_of(Panels<Pointer> system, Shared<float> sums,
                                           const Vectors<THREADS, SIZE>& v) {
    static_assert(SIZE <= THREADS, "a thread for each row");
    const int c = threadIdx.x;
    const float product = multiply_row<SIZE>(system, v.z);
    if (c >= SIZE) return 0.f;
    const float misfit = product - v.rhs[c];
    sums[c] = misfit;
    return v.z[c] * (misfit - v.rhs[c]);
}

// Judges z by its misfit, improves it by a step of iterative refinement where the factor in `lhs` is
// ill-conditioned, and writes it. `loss` is what all threads know of the objective, `rest` each
// thread's share of what is left. The objective stays that of the first z: at a minimum the
// difference is of second order.
template <int THREADS, int SIZE>
__device__ __forceinline__ void write_row(const HalfSweep& problem, const Row& row, int condition,
                                          float loss, float rest, Shared<float> sums,
                                          SharedPanels lhs, const Vectors<THREADS, SIZE>& v) {
    float residual = 0.f, rhs = 0.f;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) {
        float misfit = sums[c];
#if SOLVER == NON_NEGATIVE
        // At the bound a positive gradient is no error.
        if (c < problem.k - problem.free_columns && v.z[c] <= 0.f) misfit = fminf(misfit, 0.f);
        sums[c] = misfit;
#endif
        residual = fmaf(misfit, misfit, residual);
        rhs = fmaf(v.rhs[c], v.rhs[c], rhs);
    }
    residual = block_sum<THREADS>(residual, v.scratch);
    rhs = block_sum<THREADS>(rhs, v.scratch);
    rest = block_sum<THREADS>(rest, v.scratch);
    float share = relative(residual, rhs);
#if SOLVER == CONJUGATE_GRADIENT
    if (share == share) share = 0.f;  // its residual is no sign of failure
#endif
    if (condition == kSingular) share = no_number();
    const bool good = share <= problem.residual_limit;
#if SOLVER == CHOLESKY
    if (good && condition == kIll) {
        solve_forward<THREADS>(lhs, sums);
        solve_back<THREADS>(lhs, sums, v.scratch);
        for (int c = threadIdx.x; c < SIZE; c += THREADS) v.z[c] -= sums[c];
        __syncthreads();
    }
#endif
    if (good)
        for (int c = threadIdx.x; c < problem.stride; c += THREADS)
            Global<float>(problem.z)[row.number * problem.stride + c] =
                c < problem.k ? v.z[c] * row.scale_of(c) : 0.f;
    if (threadIdx.x == 0) {
        Global<float>(problem.residual)[row.number] = share;
        Global<float>(problem.bound)[row.number] = residual / row.shift;
        Global<float>(problem.objective)[row.number] = loss + rest;
    }
}
