// Exact and approximate solutions of the rows of a half-sweep, one row at a time, all in cache.
//
// A row with the entries w_i (rows of the fixed side), gram weights g_i and target weights t_i is
//
//     (shift I + sum_i g_i w_i w_i^T) z = b0 + sum_i t_i w_i,
//
// in the coordinates of the half-sweep (core/basis.py), where every w_i may be scaled column by
// column for the row. It is solved in the dual or the primal form or by conjugate gradients,
// whichever is cheapest; the residual of every solution is worked out afresh from its entries.
// A row's numbers depend on that row alone: neither on threads nor on the rows around it.

#include <cstdlib>
#include <utility>

#include "dense.h"
#include "threads.h"

struct HalfSweep {
    int64_t n_rows, n_long;  // in `order`, and the last of them that are long
    int64_t k, stride, longest, n_steps;
    const int64_t *order, *indptr;
    const void *indices, *root, *targets, *offset, *fixed;
    const double* ridge;
    double ridge_all;
    const void *eigenvalues, *rotation, *inverse, *b0;
    const int64_t* only_indptr;
    const void *only_indices, *only_values;
    void* solved;
    double tolerance, residual_limit;
    int32_t wide_indices, wide_only, rotated, squared_loss, fixed_steps, n_threads;
    uint8_t* solved_rows;  // (n_rows) 1 where a row was solved, else it was left as it is
    double* objective;  // (chunks) of the rows that were solved
    double* bound;      // (chunks)
    double* residual;   // (chunks)
    int64_t* ways;      // (4) shared, dual, primal, cg
    int64_t* steps;     // (n_steps) rows by the steps they took
    const int32_t* stop;  // not 0 once no more rows are wanted
};

namespace {

constexpr int64_t CHUNK = 16;  // rows that change coordinates together
constexpr int64_t AHEAD = 6;   // entries between a row's being asked for and its use
constexpr int GROUP = WIDTH == 64 ? 8 : 4;  // entries whose products with a vector run side by side
constexpr int PACE = 3;  // steps after which a solution by conjugate gradients is reconsidered
enum Way { SHARED, DUAL, PRIMAL, CG, N_WAYS };

template <class T>
inline void fetch(const T* row, int64_t width) {
    for (int64_t c = 0; c < width; c += LANES<T>) __builtin_prefetch(row + c);
}

// Entries that the primal form takes at a time, so that they stay in the cache.
template <class T>
inline int64_t segment_of(int64_t width) {
    return up(std::max(width + 16, int64_t(1 << 18) / int64_t(sizeof(T)) / width), LANES<T>);
}

// What a thread works in.
template <class T>
struct Work {
    const int64_t width, segment;
    std::vector<const T*> w;  // the entries' rows
    Room<T> g, t, root, tau, q, f, u;
    Room<T> rows, panels;  // W, scaled, by rows and by panels
    Room<T> factor, sum, inverse, turned;
    Room<T> b0, b, r, p, ap, scale, scaled, nothing;
    Room<T> z, x;  // of a chunk

    Work(int64_t width, int64_t longest)
        : width(width), segment(segment_of<T>(width)), w(longest + GROUP),
          g(longest + 64), t(longest + 64), root(longest + 64), tau(longest + 64),
          q(longest + 64), f(longest + 64), u(width + 64),
          rows((width + 16) * width), panels((segment + 16) * width),
          factor((width + 16) * (width + 16)), sum(width * width),
          inverse(LANES<T> * (width + 16)), turned(LANES<T> * (width + 16)),
          b0(width), b(width), r(width), p(width), ap(width), scale(width), scaled(width), nothing(width),
          z(CHUNK * width), x(CHUNK * width) {
        memset(nothing, 0, sizeof(T) * width);
    }
};

template <class T>
inline T dot(int64_t width, const T* a, const T* b) {
    Lanes<T> sum = zero<T>();
    for (int64_t c = 0; c < width; c += LANES<T>) sum = fma(load(a + c), load(b + c), sum);
    return total(sum);
}

// q_i = w_i . z for R entries; with ADD, out += sum_i (g_i q_i - h_i) w_i
template <class T, int R, bool ADD, bool TAKE>
inline void apply_group(int64_t width, const T* const* w, const T* z, const T* g, const T* h, T* q, T* out) {
    constexpr int L = LANES<T>;
    Lanes<T> sum[R];
    UNROLL for (auto& s : sum) s = zero<T>();
    for (int64_t c = 0; c < width; c += L) {
        const Lanes<T> right = load(z + c);
        UNROLL for (int i = 0; i < R; i++) sum[i] = fma(right, load(w[i] + c), sum[i]);
    }
    UNROLL for (int i = 0; i < R; i += 4)
        totals(reinterpret_cast<const Lanes<T>(&)[4]>(sum[i]), q + i);
    if constexpr (ADD) {
        T f[R];
        UNROLL for (int i = 0; i < R; i++) f[i] = TAKE ? g[i] * q[i] - h[i] : g[i] * q[i];
        for (int64_t c = 0; c < width; c += L) {
            Lanes<T> s = load(out + c);
            UNROLL for (int i = 0; i < R; i++) s = fma(f[i], load(w[i] + c), s);
            store(out + c, s);
        }
    }
}

template <class T, bool ADD, bool TAKE>
inline void apply(int64_t n, int64_t width, const T* const* w, const T* z, const T* g, const T* h, T* q, T* out) {
    for (int64_t i = 0; i < n; i += GROUP)
        apply_group<T, GROUP, ADD, TAKE>(width, w + i, z, g + i, h ? h + i : h, q + i, out);
}

// out += sum_i f_i w_i, four at a time
template <class T>
inline void combine(int64_t n, int64_t width, const T* const* w, const T* f, T* out) {
    for (int64_t i = 0; i < n; i += 4)
        for (int64_t c = 0; c < width; c += LANES<T>) {
            Lanes<T> s = load(out + c);
            UNROLL for (int j = 0; j < 4; j++) s = fma(f[i + j], load(w[i + j] + c), s);
            store(out + c, s);
        }
}

template <class T>
inline void multiply_into(int64_t width, const T* a, const T* b, T* to) {
    for (int64_t c = 0; c < width; c += LANES<T>) store(to + c, load(a + c) * load(b + c));
}

// Whether squares of numbers of this size, and of what rounding leaves of them, are in range.
template <class T>
inline bool in_range(T square) {
    const T least = sizeof(T) == 4 ? T(1e-20) : T(1e-250);
    return square > least && square < 1 / least;
}

// log2 to about .09, the same on every machine
inline double rough_log2(double x) {
    int exponent;
    const double mantissa = std::frexp(x, &exponent);
    return exponent + 2 * mantissa - 2;
}

// Nanoseconds of a direct solution beyond its gathering and its check, and of a step of conjugate
// gradients, as measured on one machine. Only their ratio matters.
template <class T>
inline double direct_cost(double n, double k) {
    if (n >= k) return .0119 * n * k * k + .0036 * k * k * k + .35 * n * k;
    const double m = double(up(int64_t(n), LANES<T>));
    return .0105 * m * m * k + .006 * m * m * m + .3 * m * k + 46 * m;
}

template <class T>
inline double step_cost(double n, double k) {
    const bool in_cache = n * k * double(sizeof(T)) <= 1 << 20;
    return (in_cache ? .075 : .13) * n * k + 20;
}

template <class T, class Index>
struct Rows {
    const HalfSweep& sweep;
    const int64_t width;
    const T* const fixed;
    const Index* const indices;
    const T *enter, *leave;

    struct Result {
        double objective = 0, bound = 0, residual = 0;
        int way = SHARED, steps = 0;
        bool solved = false;
    };

    struct Row {
        int64_t n, padded, positive;
        T shift;
    };

    void solve_chunk(int64_t chunk, Work<T>& work, int64_t* ways, int64_t* steps) const {
        const auto [first, n] = places(chunk);
        const int64_t k = sweep.k;
        T* const solved = static_cast<T*>(sweep.solved);
        T* const from = enter || leave ? static_cast<T*>(work.x) : static_cast<T*>(work.z);
        if (sweep.fixed_steps) {
            memset(from, 0, sizeof(T) * n * width);
            for (int64_t i = 0; i < n; i++)
                memcpy(from + i * width, solved + sweep.order[first + i] * k, sizeof(T) * k);
            if (enter) multiply<T>(work.x, n, width, enter, work.z);
        }
        Result results[CHUNK];
        for (int64_t i = 0; i < n; i++) {
            if (i + 1 < n) fetch_first(sweep.order[first + i + 1]);
            results[i] = solve_row(first + i, work.z + i * width, work);
            unscale(work.z + i * width, work);
        }
        if (leave) multiply<T>(work.z, n, width, leave, work.x);
        double objective = 0, bound = 0, residual = 0;
        for (int64_t i = 0; i < n; i++) {
            Result& result = results[i];
            const T* x = from + i * width;
            T any = 0;
            for (int64_t c = 0; c < k; c++) any += x[c] - x[c];  // NaN if one is not finite
            if (!result.solved || any != 0) continue;
            sweep.solved_rows[first + i] = 1;
            memcpy(solved + sweep.order[first + i] * k, x, sizeof(T) * k);
            objective += result.objective;
            bound += result.bound;
            residual = std::max(residual, result.residual);
            ways[result.way]++;
            if (result.way == CG && !sweep.fixed_steps)
                steps[std::min<int64_t>(result.steps, sweep.n_steps - 1)]++;
        }
        sweep.objective[chunk] = objective;
        sweep.bound[chunk] = bound;
        sweep.residual[chunk] = residual;
    }

  private:
    // Long rows are chunks of their own, so that threads share them.
    std::pair<int64_t, int64_t> places(int64_t chunk) const {
        const int64_t packed = sweep.n_rows - sweep.n_long, before = (packed + CHUNK - 1) / CHUNK;
        if (chunk >= before) return {packed + chunk - before, 1};
        return {chunk * CHUNK, std::min(CHUNK, packed - chunk * CHUNK)};
    }

    const T* row_of(Index index) const { return fixed + int64_t(index) * width; }

    void fetch_first(int64_t row) const {
        const int64_t first = sweep.indptr[row], last = std::min(sweep.indptr[row + 1], first + AHEAD);
        for (int64_t i = first; i < last; i++) fetch(row_of(indices[i]), width);
    }

    Result solve_row(int64_t place, T* z, Work<T>& work) const {
        const int64_t number = sweep.order[place];
        Row row{};
        row.n = sweep.indptr[number + 1] - sweep.indptr[number];
        row.padded = up(row.n, GROUP);
        const double ridge = sweep.ridge ? sweep.ridge[number] : sweep.ridge_all;
        row.shift = sweep.rotated ? T(1) : T(ridge);
        Result result;
        if (sweep.eigenvalues) {
            const T* eigenvalues = static_cast<const T*>(sweep.eigenvalues);
            for (int64_t c = 0; c < width; c++) work.scale[c] = 1 / std::sqrt(eigenvalues[c] + T(ridge));
            if (sweep.fixed_steps)
                for (int64_t c = 0; c < width; c++) z[c] /= work.scale[c];
        }
        if (!(row.shift > 0)) return result;
        const bool has_b0 = right_hand_side(place, number, work);
        if (row.n == 0) {
            const T inverse = 1 / row.shift;
            for (int64_t c = 0; c < width; c++) z[c] = has_b0 ? work.b0[c] * inverse : 0;
            result.objective = row_terms(row, z, has_b0, work);
            result.solved = true;
            return result;
        }
        gather(number, row, work);
        if (sweep.fixed_steps) {
            result.way = CG;
            take_steps(row, has_b0, z, result, work);
            return result;
        }
        const bool definite = row.positive == row.n;
        if (sweep.tolerance > 0 && definite && certified(row, has_b0, z, result, work)) {
            result.way = CG;
            result.solved = true;
            return result;
        }
        if (definite && row.n < sweep.k) {
            result.way = DUAL;
            if (!solve_dual(row, has_b0, z, work)) return result;
            judge(row, has_b0, z, result, work);
        } else {
            result.way = PRIMAL;
            if (!solve_primal(row, has_b0, z, work)) return result;
            judge(row, has_b0, z, result, work);
        }
        if (!definite) result.bound = INFINITY;
        result.solved = result.residual <= sweep.residual_limit;
        return result;
    }

    // b0 of a row, in work.b0; false where it is zero.
    bool right_hand_side(int64_t place, int64_t number, Work<T>& work) const {
        const T* given = static_cast<const T*>(sweep.b0);
        int64_t first = 0, last = 0;
        if (sweep.only_indptr) {
            first = sweep.only_indptr[place];
            last = sweep.only_indptr[place + 1];
        }
        if (!given && first == last) return false;
        T* b0 = work.b0;
        if (given) memcpy(b0, given + number * width, sizeof(T) * width);
        else memset(b0, 0, sizeof(T) * width);
        const T* values = static_cast<const T*>(sweep.only_values);
        if (sweep.wide_only) add_only(static_cast<const int64_t*>(sweep.only_indices), values, first, last, b0, work);
        else add_only(static_cast<const int32_t*>(sweep.only_indices), values, first, last, b0, work);
        if (sweep.eigenvalues) multiply_into<T>(width, b0, work.scale, b0);
        return true;
    }

    template <class Only>
    void add_only(const Only* places, const T* values, int64_t first, int64_t last, T* b0, Work<T>& work) const {
        for (int64_t i = first; i < last; i += 4) {
            const T* w[4];
            T f[4];
            for (int j = 0; j < 4; j++) {
                const bool there = i + j < last;
                w[j] = there ? fixed + int64_t(places[i + j]) * width : work.nothing;
                f[j] = there ? values[i + j] : 0;
                if (i + j + AHEAD < last) fetch(fixed + int64_t(places[i + j + AHEAD]) * width, width);
            }
            combine<T>(4, width, w, f, b0);
        }
    }

    // The entries of a row: those with a negative gram weight last.
    void gather(int64_t number, Row& row, Work<T>& work) const {
        const int64_t first = sweep.indptr[number], n = row.n;
        const T* roots = static_cast<const T*>(sweep.root);
        const T* targets = static_cast<const T*>(sweep.targets) + first;
        const T* offset = static_cast<const T*>(sweep.offset);
        const Index* at = indices + first;
        row.positive = n;
        if (roots) {
            roots += first;
            row.positive = 0;
            for (int64_t i = 0; i < n; i++) row.positive += roots[i] >= 0;
        }
        int64_t plus = 0, minus = row.positive;
        for (int64_t i = 0; i < n; i++) {
            const T signed_root = roots ? roots[i] : 1;
            const int64_t j = signed_root >= 0 ? plus++ : minus++;
            const T root = std::fabs(signed_root);
            T tau = targets[i];
            if (offset) tau -= root * offset[at[i]];
            work.w[j] = row_of(at[i]);
            work.root[j] = root;
            work.tau[j] = tau;
            work.g[j] = signed_root * root;
            work.t[j] = root * tau;
        }
        for (int64_t i = n; i < row.padded; i++) {
            work.w[i] = work.nothing;
            work.root[i] = work.tau[i] = work.g[i] = work.t[i] = 0;
        }
    }

    // z where rows of the fixed side are multiplied by it
    const T* scaled(const T* z, Work<T>& work) const {
        if (!sweep.eigenvalues) return z;
        multiply_into<T>(width, z, work.scale, work.scaled);
        return work.scaled;
    }

    void unscale(T* sum, Work<T>& work) const {
        if (sweep.eigenvalues) multiply_into<T>(width, sum, work.scale, sum);
    }

    // shift |z|^2 - 2 b0 . z
    double row_terms(const Row& row, const T* z, bool has_b0, const Work<T>& work) const {
        double square = 0, linear = 0;
        for (int64_t c = 0; c < width; c++) square += double(z[c]) * z[c];
        if (has_b0)
            for (int64_t c = 0; c < width; c++) linear += double(z[c]) * work.b0[c];
        return double(row.shift) * square - 2 * linear;
    }

    double entry_loss(const Row& row, const Work<T>& work) const {
        double loss = 0;
        if (sweep.squared_loss)
            for (int64_t i = 0; i < row.n; i++) {
                const double e = double(work.tau[i]) - double(work.root[i]) * work.q[i];
                loss += e * e;
            }
        else
            for (int64_t i = 0; i < row.n; i++) {
                const double score = double(work.root[i]) * work.q[i];
                loss += score * (std::copysign(score, work.g[i] * work.q[i]) - 2 * double(work.tau[i]));
            }
        return loss;
    }

    // b = b0 + sum_i t_i w_i, in work.b
    void whole_right_hand_side(const Row& row, bool has_b0, Work<T>& work) const {
        memset(work.b, 0, sizeof(T) * width);
        combine<T>(row.padded, width, work.w.data(), work.t, work.b);
        unscale(work.b, work);
        if (has_b0)
            for (int64_t c = 0; c < width; c++) work.b[c] += work.b0[c];
    }

    // work.r = lhs z - rhs, from the entries; their q on the way
    void misfit(const Row& row, bool has_b0, const T* z, Work<T>& work) const {
        T* r = work.r;
        memset(r, 0, sizeof(T) * width);
        apply<T, true, true>(row.padded, width, work.w.data(), scaled(z, work), work.g, work.t, work.q, r);
        unscale(r, work);
        for (int64_t c = 0; c < width; c++) {
            const T rest = has_b0 ? row.shift * z[c] - work.b0[c] : row.shift * z[c];
            r[c] += rest;
        }
    }

    // Residual, bound and objective of a solution, given work.b and work.r.
    void sum_up(const Row& row, bool has_b0, const T* z, Result& result, Work<T>& work) const {
        double error = 0, size = 0;
        for (int64_t c = 0; c < width; c++) {
            error += double(work.r[c]) * work.r[c];
            size += double(work.b[c]) * work.b[c];
        }
        const double tiny = std::numeric_limits<T>::min();
        result.residual = std::sqrt(error) / std::max(std::sqrt(size), tiny);
        result.bound = error / double(row.shift);
        result.objective = entry_loss(row, work) + row_terms(row, z, has_b0, work);
    }

    void judge(const Row& row, bool has_b0, const T* z, Result& result, Work<T>& work) const {
        whole_right_hand_side(row, has_b0, work);
        misfit(row, has_b0, z, work);
        sum_up(row, has_b0, z, result, work);
    }

    // The push-through form: (shift I + W W^T) u = tau - W b0 / shift, z = b0 / shift + W^T u.
    bool solve_dual(const Row& row, bool has_b0, T* z, Work<T>& work) const {
        constexpr int L = LANES<T>, H = L / 2;
        const int64_t n = row.n, padded = up(n, L);
        for (int64_t i = 0; i < n; i++) {
            if (i + AHEAD < n) fetch(work.w[i + AHEAD], width);
            T* to = work.rows + i * width;
            const Lanes<T> root = splat(work.root[i]);
            for (int64_t c = 0; c < width; c += L) {
                Lanes<T> w = load(work.w[i] + c) * root;
                if (sweep.eigenvalues) w = w * load(work.scale + c);
                store(to + c, w);
            }
        }
        memset(work.rows + n * width, 0, sizeof(T) * (padded - n) * width);
        for (int64_t i = 0; i < padded; i += H)
            for (int64_t c = 0; c < width; c += H)
                transpose(work.rows + i * width + c, width,
                          work.panels + (i / L) * width * L + L * c + i % L, L);
        const Factor<T> factor{work.factor, work.inverse, work.turned, padded * L};
        if (!cholesky<T>(work.panels, width * L, width, nullptr, n, row.shift, factor)) return false;
        memcpy(work.u, work.tau, sizeof(T) * n);
        for (int64_t i = n; i < padded; i++) work.u[i] = 0;
        if (has_b0) {
            const T inverse = 1 / row.shift;
            for (int64_t c = 0; c < width; c++) z[c] = work.b0[c] * inverse;
            for (int64_t i = 0; i < padded; i += L)
                store(work.u + i, weighted<T, true>(load(work.u + i), z, work.panels + i * width, width));
            for (int64_t i = n; i < padded; i++) work.u[i] = 0;
        } else {
            memset(z, 0, sizeof(T) * width);
        }
        substitute(factor, n, static_cast<T*>(work.u));
        const T* four[4];
        for (int64_t i = 0; i < padded; i += 4) {
            for (int j = 0; j < 4; j++) four[j] = work.rows + (i + j) * width;
            combine<T>(4, width, four, work.u + i, z);
        }
        return true;
    }

    // The k x k system.
    bool solve_primal(const Row& row, bool has_b0, T* z, Work<T>& work) const {
        constexpr int L = LANES<T>;
        const int64_t segment = work.segment, blocks = width / L;
        const bool whole = row.n <= segment && row.positive == row.n;
        const Factor<T> factor{work.factor, work.inverse, work.turned, width * L};
        memset(z, 0, sizeof(T) * width);
        if (!whole) memset(work.sum, 0, sizeof(T) * width * width);
        int64_t begin = 0, end = 0;
        while (begin < row.n) {
            const bool minus = begin >= row.positive;
            end = std::min(begin + segment, minus ? row.n : row.positive);
            fill_panels(begin, end, z, work);
            if (!whole)
                for (int64_t q = 0; q < blocks; q++)
                    for (int64_t p = 0; p <= q; p++) {
                        T* c = work.sum + q * factor.stride + L * L * p;
                        const T *left = work.panels + p * segment * L, *right = work.panels + q * segment * L;
                        block(L, left, right, minus ? 0 : end - begin, left, right, minus ? end - begin : 0, (const T*)c, c);
                    }
            begin = end;
        }
        for (int64_t c = 0; c < width; c++) z[c] = has_b0 ? z[c] + work.b0[c] : z[c];
        const bool definite =
            whole ? cholesky<T>(work.panels, segment * L, row.n, nullptr, width, row.shift, factor)
                  : cholesky<T>(nullptr, 0, 0, work.sum, width, row.shift, factor);
        if (definite) substitute(factor, width, z);
        return definite;
    }

    // Some entries as panels, and their share of the right-hand side.
    void fill_panels(int64_t begin, int64_t end, T* rhs, Work<T>& work) const {
        constexpr int L = LANES<T>;
        for (int64_t i = begin; i < end; i++) {
            if (i + AHEAD < end) fetch(work.w[i + AHEAD], width);
            const Lanes<T> root = splat(work.root[i]);
            const T tau = work.tau[i];
            T* to = work.panels + (i - begin) * L;
            for (int64_t c = 0; c < width; c += L) {
                Lanes<T> w = load(work.w[i] + c) * root;
                if (sweep.eigenvalues) w = w * load(work.scale + c);
                store(to + c * work.segment, w);
                store(rhs + c, fma(tau, w, load(rhs + c)));
            }
        }
    }

    // Conjugate gradients from zero until the energy certificate holds of the true residual.
    // False, with nothing promised of z, where a direct solution is cheaper.
    bool certified(const Row& row, bool has_b0, T* z, Result& result, Work<T>& work) const {
        const double n = double(row.n), k = double(width);
        const int cap = int(std::min(250., direct_cost<T>(n, k) / step_cost<T>(n, k)));
        if (cap < 5) return false;
        whole_right_hand_side(row, has_b0, work);
        const T* b = work.b;
        T *r = work.r, *p = work.p, *ap = work.ap;
        memset(z, 0, sizeof(T) * width);
        memcpy(r, b, sizeof(T) * width);
        const double small = sweep.tolerance * sweep.tolerance * double(row.shift);
        T energy = dot(width, r, r);
        const double begin = energy;
        int steps = 0;
        for (int attempt = 0; attempt < 3; attempt++) {
            if (attempt == 0 && !in_range(energy)) return false;
            memcpy(p, r, sizeof(T) * width);
            bool enough = false;
            while (!enough) {
                if (steps == cap) return false;
                memset(ap, 0, sizeof(T) * width);
                apply<T, true, false>(row.padded, width, work.w.data(), scaled(p, work), work.g, nullptr, work.q, ap);
                unscale(ap, work);
                Lanes<T> curve = zero<T>();
                for (int64_t c = 0; c < width; c += LANES<T>) {
                    const Lanes<T> at = load(p + c), image = fma(row.shift, at, load(ap + c));
                    store(ap + c, image);
                    curve = fma(at, image, curve);
                }
                const T curvature = total(curve);
                if (!(curvature > 0)) return false;
                const T length = energy / curvature;
                Lanes<T> square = zero<T>(), gain = zero<T>();
                for (int64_t c = 0; c < width; c += LANES<T>) {
                    const Lanes<T> at = fma(length, load(p + c), load(z + c));
                    const Lanes<T> rest = fnma(length, load(ap + c), load(r + c));
                    store(z + c, at);
                    store(r + c, rest);
                    square = fma(rest, rest, square);
                    gain = fma(at, load(b + c), gain);
                }
                steps++;
                const T former = energy;
                energy = total(square);
                const double goal = small * double(total(gain));
                enough = energy <= .8 * goal;
                if (!(energy == energy)) return false;
                if (!enough && attempt == 0 && steps % PACE == 0) {
                    const double done = rough_log2(begin / energy), all = rough_log2(begin / goal);
                    if (!(steps * all <= .8 * cap * done)) return false;  // too slow so far
                }
                if (!enough) {
                    const T turn = energy / former;
                    for (int64_t c = 0; c < width; c += LANES<T>) store(p + c, fma(turn, load(p + c), load(r + c)));
                }
            }
            misfit(row, has_b0, z, work);
            for (int64_t c = 0; c < width; c++) r[c] = -r[c];
            energy = dot(width, r, r);
            if (energy <= small * double(dot(width, b, static_cast<const T*>(z)))) {
                sum_up(row, has_b0, z, result, work);
                result.steps = steps;
                return true;
            }
        }
        return false;
    }

    // A given number of steps from the former value, as core/cg.py takes them.
    void take_steps(const Row& row, bool has_b0, T* z, Result& result, Work<T>& work) const {
        T *r = work.r, *p = work.p, *ap = work.ap, *image = work.f;
        misfit(row, has_b0, z, work);
        // Everything is homogeneous in the residual; a power of two changes no digit.
        T largest = 0;
        for (int64_t c = 0; c < width; c++) largest = std::max(largest, std::fabs(r[c]));
        int exponent = 0;
        std::frexp(largest, &exponent);
        const T size = std::ldexp(T(1), exponent), inverse = std::ldexp(T(1), -exponent);
        for (int64_t c = 0; c < width; c++) p[c] = r[c] = -r[c] * inverse;
        constexpr T tiny = std::numeric_limits<T>::min(), eps = std::numeric_limits<T>::epsilon();
        T energy = dot(width, r, r), square = energy, steepest = 0;
        for (int step = 0; step < sweep.fixed_steps && energy > tiny; step++) {
            const bool last = step + 1 == sweep.fixed_steps;
            const T* at = scaled(p, work);
            memset(ap, 0, sizeof(T) * width);
            if (last) apply<T, false, false>(row.padded, width, work.w.data(), at, work.g, nullptr, image, ap);
            else apply<T, true, false>(row.padded, width, work.w.data(), at, work.g, nullptr, image, ap);
            T curvature = row.shift * square;
            Lanes<T> sum = zero<T>();
            for (int64_t i = row.padded; i < up(row.padded, LANES<T>); i++) image[i] = work.g[i] = 0;
            for (int64_t i = 0; i < row.padded; i += LANES<T>) {
                const Lanes<T> f = load(image + i);
                sum = fma(load(work.g + i) * f, f, sum);
            }
            curvature += total(sum);
            steepest = std::max(steepest, curvature / std::max(square, tiny));
            if (!(curvature > tiny && curvature > eps * steepest * square)) break;
            const T length = energy / curvature;
            const T whole = size * length;
            for (int64_t c = 0; c < width; c++) z[c] += whole * p[c];
            for (int64_t i = 0; i < row.padded; i++) work.q[i] += whole * image[i];
            if (last) break;
            unscale(ap, work);
            Lanes<T> rest_square = zero<T>();
            for (int64_t c = 0; c < width; c += LANES<T>) {
                const Lanes<T> rest = fnma(length, fma(row.shift, load(p + c), load(ap + c)), load(r + c));
                store(r + c, rest);
                rest_square = fma(rest, rest, rest_square);
            }
            const T former = energy;
            energy = total(rest_square);
            const T turn = former > tiny ? energy / former : 0;
            Lanes<T> direction_square = zero<T>();
            for (int64_t c = 0; c < width; c += LANES<T>) {
                const Lanes<T> direction = fma(turn, load(p + c), load(r + c));
                store(p + c, direction);
                direction_square = fma(direction, direction, direction_square);
            }
            square = total(direction_square);
        }
        result.objective = entry_loss(row, work) + row_terms(row, z, has_b0, work);
        result.bound = INFINITY;
        result.solved = std::isfinite(result.objective);
    }
};

template <class T, class Index>
void run(const HalfSweep& sweep) {
    const int64_t width = sweep.stride, k = sweep.k;
    Room<T> enter(sweep.fixed_steps && sweep.inverse ? width * width : 0), leave(sweep.rotation ? width * width : 0);
    if (sweep.fixed_steps && sweep.inverse) into_panels(static_cast<const T*>(sweep.inverse), k, width, static_cast<T*>(enter));
    if (sweep.rotation) into_panels(static_cast<const T*>(sweep.rotation), k, width, static_cast<T*>(leave));
    const Rows<T, Index> rows{
        sweep, width, static_cast<const T*>(sweep.fixed), static_cast<const Index*>(sweep.indices),
        sweep.fixed_steps && sweep.inverse ? static_cast<T*>(enter) : nullptr,
        sweep.rotation ? static_cast<T*>(leave) : nullptr};
    const int64_t chunks = (sweep.n_rows - sweep.n_long + CHUNK - 1) / CHUNK + sweep.n_long;
    std::vector<std::vector<int64_t>> counted(
        std::max(1, sweep.n_threads), std::vector<int64_t>(N_WAYS + sweep.n_steps));
    share(chunks, sweep.n_threads, [&](int64_t thread, auto next) {
        try {
            Work<T> own(width, sweep.longest);
            int64_t* ways = counted[thread].data();
            for (int64_t i = next(); i >= 0; i = next()) {
                if (__atomic_load_n(sweep.stop, __ATOMIC_RELAXED)) break;
                rows.solve_chunk(chunks - 1 - i, own, ways, ways + N_WAYS);  // longest rows first
            }
        } catch (const std::bad_alloc&) {  // others may have room, or the rows are left
        }
    });
    for (const auto& own : counted) {
        for (int way = 0; way < N_WAYS; way++) sweep.ways[way] += own[way];
        for (int64_t step = 0; step < sweep.n_steps; step++) sweep.steps[step] += own[N_WAYS + step];
    }
}

}  // namespace

extern "C" {

// The best variant of this library that the processor can run: 4 or 3 for x86-64-v4 or v3, else 0.
int level() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        return 4;
    if (v3) return 3;
#endif
    return 0;
}

void half_sweep_float(const HalfSweep* sweep) {
    sweep->wide_indices ? run<float, int64_t>(*sweep) : run<float, int32_t>(*sweep);
}

void half_sweep_double(const HalfSweep* sweep) {
    sweep->wide_indices ? run<double, int64_t>(*sweep) : run<double, int32_t>(*sweep);
}
}
