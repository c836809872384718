// Vectors of 64 bytes, whatever the machine's own width: sums follow one order on all of them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif

#define UNROLL _Pragma("GCC unroll 16")

template <class T, int BYTES>
struct VectorOf {
    typedef T type __attribute__((vector_size(BYTES), may_alias));
};

template <class T>
constexpr int LANES = 64 / sizeof(T);

// 64 bytes of T as one to four of the machine's vectors.
template <class T>
struct Lanes {
    typedef typename VectorOf<T, WIDTH>::type Native;
    static constexpr int PARTS = 64 / WIDTH;
    Native part[PARTS];
};

template <class T>
inline Lanes<T> load(const T* from) {
    Lanes<T> x;
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++)
        memcpy(&x.part[i], from + i * WIDTH / sizeof(T), WIDTH);
    return x;
}

template <class T>
inline void store(T* to, Lanes<T> x) {
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++)
        memcpy(to + i * WIDTH / sizeof(T), &x.part[i], WIDTH);
}

template <class T>
inline Lanes<T> splat(T value) {
    Lanes<T> x;
    UNROLL for (auto& part : x.part) part = value - typename Lanes<T>::Native{};
    return x;
}

template <class T>
inline Lanes<T> zero() {
    Lanes<T> x;
    UNROLL for (auto& part : x.part) part = typename Lanes<T>::Native{};
    return x;
}

// The compiler makes one instruction of each product and sum.
template <class T>
inline Lanes<T> fma(T a, Lanes<T> b, Lanes<T> c) {
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++) c.part[i] = c.part[i] + a * b.part[i];
    return c;
}

template <class T>
inline Lanes<T> fma(Lanes<T> a, Lanes<T> b, Lanes<T> c) {
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++) c.part[i] = c.part[i] + a.part[i] * b.part[i];
    return c;
}

template <class T>
inline Lanes<T> fnma(T a, Lanes<T> b, Lanes<T> c) {
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++) c.part[i] = c.part[i] - a * b.part[i];
    return c;
}

template <class T>
inline Lanes<T> operator+(Lanes<T> a, Lanes<T> b) {
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++) a.part[i] = a.part[i] + b.part[i];
    return a;
}

template <class T>
inline Lanes<T> operator*(Lanes<T> a, Lanes<T> b) {
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++) a.part[i] = a.part[i] * b.part[i];
    return a;
}

// A bit for each lane that exceeds a number; NaN does not.
template <class T>
inline uint32_t above(Lanes<T> x, T floor) {
    constexpr bool single = sizeof(T) == 4;
    uint32_t bits = 0;
#if WIDTH == 64
    if constexpr (single) bits = _mm512_cmp_ps_mask((__m512)x.part[0], _mm512_set1_ps(floor), _CMP_GT_OQ);
    else bits = _mm512_cmp_pd_mask((__m512d)x.part[0], _mm512_set1_pd(floor), _CMP_GT_OQ);
#else
    UNROLL for (int i = 0; i < Lanes<T>::PARTS; i++) {
#if WIDTH == 32
        if constexpr (single)
            bits |= _mm256_movemask_ps(_mm256_cmp_ps((__m256)x.part[i], _mm256_set1_ps(floor), _CMP_GT_OQ)) << 8 * i;
        else bits |= _mm256_movemask_pd(_mm256_cmp_pd((__m256d)x.part[i], _mm256_set1_pd(floor), _CMP_GT_OQ)) << 4 * i;
#else
        constexpr int N = 16 / sizeof(T);
        UNROLL for (int j = 0; j < N; j++) bits |= uint32_t(x.part[i][j] > floor) << (N * i + j);
        (void)single;
#endif
    }
#endif
    return bits;
}

template <class T>
using Half = typename VectorOf<T, 32>::type;
template <class T>
using Quarter = typename VectorOf<T, 16>::type;

// Lane i and that half the width further on, until a quarter is left.
template <class T>
inline Quarter<T> fold(Lanes<T> x) {
    T all[LANES<T>] __attribute__((aligned(64)));
    Half<T> low, high;
    Quarter<T> first, second;
#if WIDTH == 64
    constexpr int H = LANES<T> / 2;
    if constexpr (H == 8) {
        low = __builtin_shufflevector(x.part[0], x.part[0], 0, 1, 2, 3, 4, 5, 6, 7);
        high = __builtin_shufflevector(x.part[0], x.part[0], 8, 9, 10, 11, 12, 13, 14, 15);
    } else {
        low = __builtin_shufflevector(x.part[0], x.part[0], 0, 1, 2, 3);
        high = __builtin_shufflevector(x.part[0], x.part[0], 4, 5, 6, 7);
    }
    (void)all;
#elif WIDTH == 32
    low = x.part[0];
    high = x.part[1];
    (void)all;
#else
    store(all, x);
    memcpy(&low, all, 32);
    memcpy(&high, all + LANES<T> / 2, 32);
#endif
    low = low + high;
    if constexpr (sizeof(T) == 4) {
        first = __builtin_shufflevector(low, low, 0, 1, 2, 3);
        second = __builtin_shufflevector(low, low, 4, 5, 6, 7);
    } else {
        first = __builtin_shufflevector(low, low, 0, 1);
        second = __builtin_shufflevector(low, low, 2, 3);
    }
    return first + second;
}

template <class T>
inline T total(Lanes<T> x) {
    const Quarter<T> s = fold(x);
    if constexpr (sizeof(T) == 4) return (s[0] + s[2]) + (s[1] + s[3]);
    else return s[0] + s[1];
}

// The totals of four, in the order of total().
inline void totals(const Lanes<float> (&x)[4], float* to) {
    typedef Quarter<float> Q;
    const Q a = fold(x[0]), b = fold(x[1]), c = fold(x[2]), d = fold(x[3]);
    const Q ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    const Q cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    const Q s = ab + ab2, t = cd + cd2;  // lanes 0 + 2 of a, b, then 1 + 3
    const Q sum = __builtin_shufflevector(s, t, 0, 1, 4, 5) + __builtin_shufflevector(s, t, 2, 3, 6, 7);
    memcpy(to, &sum, 16);
}

inline void totals(const Lanes<double> (&x)[4], double* to) {
    UNROLL for (int i = 0; i < 4; i++) to[i] = total(x[i]);
}

// The columns of a square block in memory, half the lanes on a side, rows `step` apart.
inline void columns(const float* from, int64_t step, Half<float> (&to)[8]) {
#define SHUFFLE __builtin_shufflevector
    UNROLL for (int side = 0; side < 8; side += 4) {
        Half<float> r[4];  // rows i and i + 4
        UNROLL for (int i = 0; i < 4; i++) {
            Quarter<float> low, high;
            memcpy(&low, from + i * step + side, 16);
            memcpy(&high, from + (i + 4) * step + side, 16);
            r[i] = SHUFFLE(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
        }
        UNROLL for (int i = 0; i < 2; i++) {
            const Half<float> a = i ? SHUFFLE(r[0], r[1], 2, 10, 3, 11, 6, 14, 7, 15)
                                    : SHUFFLE(r[0], r[1], 0, 8, 1, 9, 4, 12, 5, 13);
            const Half<float> b = i ? SHUFFLE(r[2], r[3], 2, 10, 3, 11, 6, 14, 7, 15)
                                    : SHUFFLE(r[2], r[3], 0, 8, 1, 9, 4, 12, 5, 13);
            to[side + 2 * i] = SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
            to[side + 2 * i + 1] = SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
        }
    }
}

inline void columns(const double* from, int64_t step, Half<double> (&to)[4]) {
    UNROLL for (int side = 0; side < 4; side += 2) {
        Half<double> r[2];  // rows i and i + 2
        UNROLL for (int i = 0; i < 2; i++) {
            Quarter<double> low, high;
            memcpy(&low, from + i * step + side, 16);
            memcpy(&high, from + (i + 2) * step + side, 16);
            r[i] = SHUFFLE(low, high, 0, 1, 2, 3);
        }
        to[side] = SHUFFLE(r[0], r[1], 0, 4, 2, 6);
        to[side + 1] = SHUFFLE(r[0], r[1], 1, 5, 3, 7);
    }
#undef SHUFFLE
}

// Such a block, turned over.
template <class T>
inline void transpose(const T* from, int64_t from_step, T* to, int64_t to_step) {
    constexpr int H = LANES<T> / 2;
    Half<T> r[H];
    columns(from, from_step, r);
    UNROLL for (int i = 0; i < H; i++) memcpy(to + i * to_step, &r[i], 32);
}
