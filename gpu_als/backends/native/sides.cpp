// What a half-sweep needs of the whole fixed side: its Gram matrix, and its factors in other
// coordinates.

#include <cstdlib>

#include "dense.h"
#include "threads.h"

namespace {

constexpr int64_t BLOCK = 256;   // rows in cache
constexpr int64_t MOST = 32;     // shares of a Gram matrix

// Adds rows^T rows to panels of the upper triangle, in float64.
template <class T>
void add_gram(const T* rows, int64_t n, int64_t k, int64_t width, double* panels, double* sum) {
    constexpr int L = LANES<double>;
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t height = std::min(BLOCK, n - first);
        for (int64_t c = 0; c < width; c += L) {
            double* panel = panels + c * BLOCK;
            const int64_t columns = std::min<int64_t>(L, k - c);
            for (int64_t t = 0; t < height; t++)
                for (int64_t j = 0; j < L; j++)
                    panel[L * t + j] = j < columns ? double(rows[(first + t) * k + c + j]) : 0;
        }
        for (int64_t q = 0; q < width; q += L)
            for (int64_t p = 0; p <= q; p += L) {
                double* to = sum + q * width + L * p;
                block(L, static_cast<const double*>(panels + p * BLOCK),
                      static_cast<const double*>(panels + q * BLOCK), height,
                      (const double*)nullptr, (const double*)nullptr, 0, (const double*)to, to);
            }
    }
}

// Shares follow the number of rows alone, and are added in order: threads change no bit.
template <class T>
int gram(const T* rows, int64_t n, int64_t k, double* out, int64_t n_threads) {
    constexpr int L = LANES<double>;
    const int64_t width = up(k, L), size = width * width;
    const int64_t height = up(std::max<int64_t>((n + MOST - 1) / MOST, 1), BLOCK);
    const int64_t shares = (n + height - 1) / height;
    try {
        const Room<double> sums(shares * size);
        std::atomic<bool> full{false};
        share(shares, n_threads, [&](int64_t, auto next) {
            try {
                const Room<double> panels(BLOCK * width);
                for (int64_t i = next(); i >= 0; i = next()) {
                    double* sum = sums + i * size;
                    memset(sum, 0, sizeof(double) * size);
                    const int64_t first = i * height;
                    add_gram(rows + first * k, std::min(height, n - first), k, width, panels, sum);
                }
            } catch (const std::bad_alloc&) {
                full = true;
            }
        });
        if (full) return 1;
        for (int64_t r = 0; r < k; r++)
            for (int64_t c = r; c < k; c++) {
                double total = 0;
                for (int64_t i = 0; i < shares; i++)
                    total += sums[i * size + (c / L) * L * width + L * r + c % L];
                out[r * k + c] = out[c * k + r] = total;
            }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

// to = rows @ matrix, computed in the matrix's type and rounded once.
template <class T, class M>
int transform(const T* rows, int64_t n, int64_t k, const M* matrix, T* to, int64_t n_threads) {
    constexpr int64_t HEIGHT = 64;
    const int64_t width = up(k, LANES<M>);
    try {
        const Room<M> panels(width * width);
        into_panels(matrix, k, width, static_cast<M*>(panels));
        std::atomic<bool> full{false};
        share((n + HEIGHT - 1) / HEIGHT, n_threads, [&](int64_t, auto next) {
            try {
                const Room<M> from(HEIGHT * width), out(HEIGHT * width);
                memset(from, 0, sizeof(M) * HEIGHT * width);
                for (int64_t i = next(); i >= 0; i = next()) {
                    const int64_t first = i * HEIGHT, height = std::min(HEIGHT, n - first);
                    for (int64_t r = 0; r < height; r++)
                        for (int64_t c = 0; c < k; c++)
                            from[r * width + c] = M(rows[(first + r) * k + c]);
                    multiply<M>(from, height, width, panels, out);
                    for (int64_t r = 0; r < height; r++)
                        for (int64_t c = 0; c < k; c++)
                            to[(first + r) * k + c] = T(out[r * width + c]);
                }
            } catch (const std::bad_alloc&) {
                full = true;
            }
        });
        return full;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

// Each returns 1 where memory was short, and 0 otherwise.
extern "C" {

int gram_float(const void* rows, int64_t n, int64_t k, double* out, int64_t n_threads) {
    return gram(static_cast<const float*>(rows), n, k, out, n_threads);
}

int gram_double(const void* rows, int64_t n, int64_t k, double* out, int64_t n_threads) {
    return gram(static_cast<const double*>(rows), n, k, out, n_threads);
}

// The matrix is of float64 where `wide`, else of the rows' type.
int transform_float(const void* rows, int64_t n, int64_t k, const void* matrix, int64_t wide,
                    void* to, int64_t n_threads) {
    const float* from = static_cast<const float*>(rows);
    float* out = static_cast<float*>(to);
    if (wide) return transform(from, n, k, static_cast<const double*>(matrix), out, n_threads);
    return transform(from, n, k, static_cast<const float*>(matrix), out, n_threads);
}

int transform_double(const void* rows, int64_t n, int64_t k, const void* matrix, int64_t,
                     void* to, int64_t n_threads) {
    return transform(static_cast<const double*>(rows), n, k, static_cast<const double*>(matrix),
                     static_cast<double*>(to), n_threads);
}
}
