// Batches of small symmetric positive definite systems, one after another.

#include "dense.h"
#include "threads.h"

namespace {

// Overwrites rhs with the solutions; failed[i] is 1 where a matrix is not positive definite.
template <class T>
int solve(const T* lhs, T* rhs, int64_t n, int64_t m, uint8_t* failed) {
    constexpr int L = LANES<T>;
    const int64_t width = up(m, L);
    try {
        const Room<T> sum(width * width), factor(width * width), x(width);
        const Room<T> inverse(L * width), turned(L * width);
        for (int64_t i = 0; i < n; i++, lhs += m * m, rhs += m) {
            into_panels(lhs, m, width, static_cast<T*>(sum));
            const Factor<T> parts{factor, inverse, turned, width * L};
            failed[i] = !cholesky<T>(nullptr, 0, 0, sum, m, 0, parts);
            if (failed[i]) continue;
            memset(x, 0, sizeof(T) * width);
            memcpy(x, rhs, sizeof(T) * m);
            substitute(parts, m, static_cast<T*>(x));
            memcpy(rhs, x, sizeof(T) * m);
        }
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace

// Each returns 1 where memory was short, and 0 otherwise.
extern "C" {

int solve_float(const void* lhs, void* rhs, int64_t n, int64_t m, uint8_t* failed) {
    return solve(static_cast<const float*>(lhs), static_cast<float*>(rhs), n, m, failed);
}

int solve_double(const void* lhs, void* rhs, int64_t n, int64_t m, uint8_t* failed) {
    return solve(static_cast<const double*>(lhs), static_cast<double*>(rhs), n, m, failed);
}
}
