// Small dense systems in panels of LANES columns: products, Cholesky factors, substitutions.
//
// A panel holds LANES columns of a matrix, row after row: element (t, j) of panel p is at
// p * stride + LANES * t + j.
#pragma once

#include <cmath>
#include <limits>

#include "lanes.h"

#if WIDTH == 64
constexpr int STRIP = 16;  // rows of a block that fit the registers
#else
constexpr int STRIP = 4;
#endif

template <class T, int M, bool MINUS>
inline void add_products(Lanes<T> (&sum)[M], const T* a, const T* b, int64_t terms) {
    constexpr int L = LANES<T>;
    for (int64_t t = 0; t < terms; t++) {
        const Lanes<T> right = load(b + L * t);
        UNROLL for (int r = 0; r < M; r++)
            sum[r] = MINUS ? fnma(a[L * t + r], right, sum[r]) : fma(a[L * t + r], right, sum[r]);
    }
}

template <class T, int M>
inline void strip(const T* a, const T* b, int64_t plus, const T* c, const T* d, int64_t minus,
                  const T* add, T* to) {
    constexpr int L = LANES<T>;
    Lanes<T> sum[M];
    UNROLL for (int r = 0; r < M; r++) sum[r] = add ? load(add + L * r) : zero<T>();
    add_products<T, M, false>(sum, a, b, plus);
    add_products<T, M, true>(sum, c, d, minus);
    UNROLL for (int r = 0; r < M; r++) store(to + L * r, sum[r]);
}

// to (rows of LANES) = add + sum_t a[t] b[t]^T - sum_t c[t] d[t]^T, at least the first `rows`.
template <class T>
inline void block(int rows, const T* a, const T* b, int64_t plus, const T* c, const T* d,
                  int64_t minus, const T* add, T* to) {
    constexpr int L = LANES<T>, M = STRIP < L ? STRIP : L;
    if constexpr (M == 16) {
        if (rows > 12) strip<T, 16>(a, b, plus, c, d, minus, add, to);
        else if (rows > 8) strip<T, 12>(a, b, plus, c, d, minus, add, to);
        else if (rows > 4) strip<T, 8>(a, b, plus, c, d, minus, add, to);
        else strip<T, 4>(a, b, plus, c, d, minus, add, to);
    } else {
        for (int r = 0; r < rows; r += M)
            strip<T, M>(a + r, b, plus, c + r, d, minus, add ? add + L * r : nullptr, to + L * r);
    }
}

// The Cholesky factor of a matrix of order n, as U with U^T U, and what its solves need.
template <class T>
struct Factor {
    T* u;        // panels, `stride` apart
    T* inverse;  // of each diagonal block, by rows: U_pp^-T
    T* turned;   // and U_pp^-1
    int64_t stride;
};

// Factors a block in place. False where a squared pivot is not above its `floor`.
template <class T>
inline bool factor_block(T* c, T* inverse, T* turned, int rows, const T* floor) {
    constexpr int L = LANES<T>, H = L / 2;
    Lanes<T> left[L], right[L];
    T row[L] __attribute__((aligned(64)));
    bool definite = true;
    for (int r = 0; r < L; r++) {
        left[r] = r < rows ? load(c + L * r) : zero<T>();
        memset(row, 0, sizeof row);
        row[r] = 1;
        right[r] = load(row);
    }
    for (int j = 0; j < rows; j++) {
        store(row, left[j]);
        const T pivot = row[j];
        definite &= pivot > floor[j];
        const T scale = T(1) / std::sqrt(pivot);
        left[j] = left[j] * splat(scale);
        right[j] = right[j] * splat(scale);
        for (int i = j + 1; i < rows; i++) {
            const T factor = row[i] * scale;
            left[i] = fnma(factor, left[j], left[i]);
            right[i] = fnma(factor, right[j], right[i]);
        }
    }
    for (int r = 0; r < L; r++) {
        store(c + L * r, left[r]);
        store(inverse + L * r, r < rows ? right[r] : zero<T>());
    }
    for (int i = 0; i < L; i += H)
        for (int j = 0; j < L; j += H) transpose(inverse + L * i + j, L, turned + L * j + i, L);
    return definite;
}

// Factors shift I + sum_t panels[t] panels[t]^T, or + sum if that is given instead. False where
// a squared pivot sinks to the rounding of its diagonal element.
template <class T>
inline bool cholesky(const T* panels, int64_t panel_stride, int64_t terms, const T* sum,
                     int64_t order, T shift, Factor<T> f) {
    constexpr int L = LANES<T>;
    const T noise = T(order) * std::numeric_limits<T>::epsilon();
    const T* const none = nullptr;
    const int64_t blocks = (order + L - 1) / L;
    bool definite = true;
    for (int64_t p = 0; p < blocks; p++) {
        const int rows = order - L * p < L ? int(order - L * p) : L;
        const T *left = panels + p * panel_stride, *above = f.u + p * f.stride;
        for (int64_t q = p; q < blocks; q++) {
            T* c = f.u + q * f.stride + L * L * p;
            const T* add = sum ? sum + q * f.stride + L * L * p : nullptr;
            const T *right = panels + q * panel_stride, *beside = f.u + q * f.stride;
            if (q > p) {
                T former[L * L] __attribute__((aligned(64)));
                block(L, left, right, terms, above, beside, L * p, add, former);
                block(L, f.turned + L * L * p, (const T*)former, L, none, none, 0, none, c);
                continue;
            }
            T floor[L];
            block(rows, left, right, terms, none, none, 0, add, c);
            for (int r = 0; r < rows; r++) {
                c[L * r + r] += shift;
                floor[r] = noise * c[L * r + r];
            }
            block(rows, none, none, 0, above, beside, L * p, (const T*)c, c);
            definite &= factor_block(c, f.inverse + L * L * p, f.turned + L * L * p, rows, floor);
        }
    }
    return definite;
}

// sum_t x[t] rows[t], `terms` a multiple of 4
template <class T, bool MINUS>
inline Lanes<T> weighted(Lanes<T> begin, const T* x, const T* rows, int64_t terms) {
    constexpr int L = LANES<T>;
    Lanes<T> a[4] = {begin, zero<T>(), zero<T>(), zero<T>()};
    for (int64_t t = 0; t < terms; t += 4)
        UNROLL for (int i = 0; i < 4; i++) {
            const Lanes<T> row = load(rows + L * (t + i));
            a[i] = MINUS ? fnma(x[t + i], row, a[i]) : fma(x[t + i], row, a[i]);
        }
    return (a[0] + a[1]) + (a[2] + a[3]);
}

// Solves U^T U x = x in place; x has room for whole blocks, zeros beyond the order.
template <class T>
inline void substitute(Factor<T> f, int64_t order, T* x) {
    constexpr int L = LANES<T>;
    const int64_t blocks = (order + L - 1) / L;
    T part[L] __attribute__((aligned(64)));
    for (int64_t p = 0; p < blocks; p++) {
        store(part, weighted<T, true>(load(x + L * p), x, f.u + p * f.stride, L * p));
        store(x + L * p, weighted<T, false>(zero<T>(), part, f.turned + L * L * p, L));
    }
    for (int64_t p = blocks - 1; p >= 0; p--) {
        memcpy(part, x + L * p, sizeof part);
        if (p + 1 < blocks)
            for (int j = 0; j < L; j += 4) {
                Lanes<T> sum[4];
                UNROLL for (auto& s : sum) s = zero<T>();
                for (int64_t q = p + 1; q < blocks; q++) {
                    const Lanes<T> right = load(x + L * q);
                    const T* row = f.u + q * f.stride + L * (L * p + j);
                    UNROLL for (int i = 0; i < 4; i++) sum[i] = fma(right, load(row + L * i), sum[i]);
                }
                T sums[4];
                totals(sum, sums);
                UNROLL for (int i = 0; i < 4; i++) part[j + i] -= sums[i];
            }
        store(x + L * p, weighted<T, false>(zero<T>(), part, f.inverse + L * L * p, L));
    }
}

// A matrix (k, k) as panels, padded by zeros to `padded` rows and columns.
template <class T>
inline void into_panels(const T* matrix, int64_t k, int64_t padded, T* panels) {
    constexpr int L = LANES<T>;
    memset(panels, 0, sizeof(T) * padded * padded);
    for (int64_t t = 0; t < k; t++)
        for (int64_t c = 0; c < k; c++)
            panels[(c / L) * padded * L + L * t + c % L] = matrix[t * k + c];
}

// to = rows @ matrix: each row's sums in one order, whatever rows stand beside it.
template <class T, int M>
inline void multiply_strip(const T* rows, int64_t width, const T* panels, T* to) {
    constexpr int L = LANES<T>;
    for (int64_t c = 0; c < width; c += L) {
        Lanes<T> sum[M];
        UNROLL for (auto& s : sum) s = zero<T>();
        const T* panel = panels + c * width;
        for (int64_t t = 0; t < width; t++) {
            const Lanes<T> right = load(panel + L * t);
            UNROLL for (int r = 0; r < M; r++) sum[r] = fma(rows[r * width + t], right, sum[r]);
        }
        UNROLL for (int r = 0; r < M; r++) store(to + r * width + c, sum[r]);
    }
}

template <class T>
inline void multiply(const T* rows, int64_t n, int64_t width, const T* panels, T* to) {
    constexpr int M = STRIP;
    int64_t r = 0;
    for (; r + M <= n; r += M)
        multiply_strip<T, M>(rows + r * width, width, panels, to + r * width);
    for (; r < n; r++) multiply_strip<T, 1>(rows + r * width, width, panels, to + r * width);
}
