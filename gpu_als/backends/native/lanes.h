// Vectors of 64 bytes, whatever the machine's own width: sums follow one order on all of them.
#pragma once

#include <cstdint>
#include <cstring>

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

// A square block in memory, HALF lanes on a side, rows `from_step` apart, turned over.
inline void transpose(const float* from, int64_t from_step, float* to, int64_t to_step) {
    typedef Half<float> H;
    H r[8], t[8], u[8];
#define SHUFFLE __builtin_shufflevector
    UNROLL for (int i = 0; i < 8; i++) memcpy(&r[i], from + i * from_step, 32);
    UNROLL for (int i = 0; i < 4; i++) {
        t[2 * i] = SHUFFLE(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        t[2 * i + 1] = SHUFFLE(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        u[4 * i] = SHUFFLE(t[4 * i], t[4 * i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
        u[4 * i + 1] = SHUFFLE(t[4 * i], t[4 * i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        u[4 * i + 2] = SHUFFLE(t[4 * i + 1], t[4 * i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
        u[4 * i + 3] = SHUFFLE(t[4 * i + 1], t[4 * i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = SHUFFLE(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        r[i + 4] = SHUFFLE(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    UNROLL for (int i = 0; i < 8; i++) memcpy(to + i * to_step, &r[i], 32);
#undef SHUFFLE
}

inline void transpose(const double* from, int64_t from_step, double* to, int64_t to_step) {
    typedef Half<double> H;
    H r[4], t[4];
#define SHUFFLE __builtin_shufflevector
    UNROLL for (int i = 0; i < 4; i++) memcpy(&r[i], from + i * from_step, 32);
    UNROLL for (int i = 0; i < 2; i++) {
        t[2 * i] = SHUFFLE(r[2 * i], r[2 * i + 1], 0, 4, 2, 6);
        t[2 * i + 1] = SHUFFLE(r[2 * i], r[2 * i + 1], 1, 5, 3, 7);
    }
    UNROLL for (int i = 0; i < 2; i++) {
        r[i] = SHUFFLE(t[i], t[i + 2], 0, 1, 4, 5);
        r[i + 2] = SHUFFLE(t[i], t[i + 2], 2, 3, 6, 7);
    }
    UNROLL for (int i = 0; i < 4; i++) memcpy(to + i * to_step, &r[i], 32);
#undef SHUFFLE
}
