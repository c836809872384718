// The best items of every user: tiles of scores that stay in the cache, and a list for each user.
//
// A score is one sum in the order of the factors, whatever stands beside it: it depends on neither
// threads nor tiles, and a user's scores are the same alone as among others.

#include <limits>
#include <mutex>

#include "lanes.h"
#include "threads.h"

struct Ranking {
    int64_t n_users, n_items, k, n_best;
    const void *users, *items;
    const int64_t* indptr;  // of the items filtered for each user, which rise; or null
    const void* indices;
    const uint8_t* everywhere;  // (n_items) not 0 for items filtered for every user; or null
    int32_t* ids;               // (n_users, n_best)
    void* scores;               // (n_users, n_best)
    const int32_t* stop;        // not 0 once no more is wanted; or null
    int32_t wide_indices, n_threads;
};

namespace {

constexpr int64_t MOST_USERS = 1024;         // that packed items serve at a time
constexpr int64_t MOST_ENTRIES = 1 << 18;    // of their lists
constexpr int64_t BLOCK_BYTES = 1 << 17;     // of packed items
constexpr int64_t WORTH_A_THREAD = 1 << 22;  // products
// Users and panels of items of a tile: sums that fit the registers, and more than one chain of them.
constexpr int USERS = 4, PANELS = WIDTH == 64 ? 4 : 1;

template <class T>
struct Scored {
    T score;
    int32_t item;
};

template <class T>
inline bool better(const Scored<T>& a, const Scored<T>& b) {
    return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// The best so far, in any order, and what came after them; all later items have higher numbers.
template <class T>
struct List {
    Scored<T>* entries;
    int64_t n_best, held = 0;
    T floor = std::numeric_limits<T>::lowest();  // what does not exceed it is not among the best

    static int64_t room(int64_t n_best) { return std::max<int64_t>(32, 2 * n_best); }

    void add(Scored<T> one) {
        entries[held++] = one;
        if (held == room(n_best)) drop();
    }

    void drop() {
        if (held <= n_best) return;
        if (is_short()) sort_few();
        else std::nth_element(entries, entries + n_best - 1, entries + held, better<T>);
        held = n_best;
        floor = entries[n_best - 1].score;
    }

    void sort() {
        drop();
        if (is_short()) sort_few();
        else std::sort(entries, entries + held, better<T>);
    }

  private:
    static constexpr int64_t FEW = 64;

    bool is_short() const { return room(n_best) <= FEW; }

    // Each goes where so many are better; no branch to guess wrong. Equal ones keep their order.
    void sort_few() {
        Scored<T> all[FEW];
        T scores[FEW], before[FEW], place[FEW];
        std::copy(entries, entries + held, all);
        const int64_t n = up(held, LANES<T>);
        for (int64_t i = 0; i < n; i++) {
            scores[i] = i < held ? all[i].score : 0;
            before[i] = 0;
            place[i] = T(i);
        }
        for (int64_t j = 0; j < held; j++) {
            const T score = scores[j], at = place[j];
            for (int64_t i = 0; i < n; i++)
                before[i] += (score > scores[i]) | ((score == scores[i]) & (at < place[i]));
        }
        for (int64_t i = 0; i < held; i++) entries[int64_t(before[i])] = all[i];
    }
};

// Meets rising numbers with those of a list.
template <class Index>
struct Cursor {
    const Index *at, *end;

    bool meets(int64_t number) {
        while (at < end && *at < number) at++;
        return at < end && *at == number;
    }
};

// Rows as panels of LANES rows: element (t, r) of panel p is at (p * k + t) * LANES + r.
template <class T>
inline void pack(const T* rows, int64_t n, int64_t k, T* panels) {
    constexpr int L = LANES<T>, H = L / 2;
    for (int64_t first = 0; first < n; first += L, panels += L * k, rows += L * k) {
        const int64_t here = std::min<int64_t>(L, n - first), whole = here < L ? 0 : k / H * H;
        for (int64_t c = 0; c < L * k; c += L) __builtin_prefetch(rows + L * k + c);
        for (int64_t t = 0; t < whole; t += H)
            for (int r = 0; r < L; r += H) transpose(rows + r * k + t, k, panels + L * t + r, L);
        for (int64_t t = whole; t < k; t++)
            for (int r = 0; r < L; r++) panels[L * t + r] = r < here ? rows[r * k + t] : 0;
    }
}

// The scores of some users in some panels of items, those of a user together.
template <class T>
inline void score(const T* users, const T* items, int64_t k, T* to) {
    constexpr int L = LANES<T>;
    constexpr int M = USERS, N = PANELS;
    Lanes<T> sum[M][N];
    UNROLL for (auto& row : sum) UNROLL for (auto& s : row) s = zero<T>();
    for (int64_t t = 0; t < k; t++)
        UNROLL for (int n = 0; n < N; n++) {
            const Lanes<T> right = load(items + L * (k * n + t));
            UNROLL for (int m = 0; m < M; m++) sum[m][n] = fma(users[L * t + m], right, sum[m][n]);
        }
    UNROLL for (int m = 0; m < M; m++)
        UNROLL for (int n = 0; n < N; n++) store(to + L * (N * m + n), sum[m][n]);
}

// The same sums for one user and LANES items that are not packed.
template <class T>
inline void score_one(const T* user, const T* items, int64_t k, T* to) {
    constexpr int H = LANES<T> / 2;
    Half<T> sum[2] = {};
    int64_t t = 0;
    for (; t + H <= k; t += H)
        UNROLL for (int side = 0; side < 2; side++) {
            // As much of the next rows as is read here: processors foresee none of such short rows.
            UNROLL for (int i = 0; i < H; i += 2)
                __builtin_prefetch(items + 2 * H * k + (2 * t + side * H + i) * H);
            Half<T> column[H];
            columns(items + H * k * side + t, k, column);
            UNROLL for (int i = 0; i < H; i++) sum[side] = sum[side] + user[t + i] * column[i];
        }
    memcpy(to, sum, sizeof sum);
    for (; t < k; t++)
        for (int i = 0; i < 2 * H; i++) to[i] += user[t] * items[i * k + t];
}

template <class T, class Index>
class Ranker {
  public:
    explicit Ranker(const Ranking& all) : all(all) {
        const int64_t threads = all.n_threads, each = (all.n_users + threads - 1) / threads;
        const int64_t most = std::clamp<int64_t>(MOST_ENTRIES / List<T>::room(all.n_best), 1, MOST_USERS);
        const int64_t rounds = (each + most - 1) / most;
        height = (each + rounds - 1) / rounds;
        if (each < L) {  // threads share out the items instead
            const double worth = double(all.n_users) * all.n_items * all.k / WORTH_A_THREAD;
            splits = int64_t(std::clamp<double>(worth, 1, threads));
            if (splits > 1) height = all.n_users;
        }
        width = up((all.n_items + splits - 1) / splits, L);
        group = up(std::max<int64_t>(1, BLOCK_BYTES / int64_t(sizeof(T)) / all.k), L * PANELS);
        group = std::min(group, up(width, L * PANELS));
    }

    // False where memory ran out.
    bool run() const {
        const int64_t tasks = (all.n_users + height - 1) / height * splits;
        std::vector<std::vector<Scored<T>>> found(splits > 1 ? all.n_users : 0);
        std::mutex finding;
        std::atomic<bool> failed{false};
        share(tasks, all.n_threads, [&](int64_t, auto next) {
            try {
                Work work(*this);
                for (int64_t task = next(); task >= 0 && !stopped(); task = next()) {
                    const int64_t first = task / splits * height, begin = task % splits * width;
                    const int64_t n = std::min(height, all.n_users - first);
                    scan(first, n, begin, std::min(begin + width, all.n_items), work);
                    for (int64_t u = 0; u < n; u++) {
                        List<T>& list = work.lists[u];
                        list.sort();
                        if (splits == 1) {
                            write(first + u, list.entries, list.held);
                            continue;
                        }
                        const std::lock_guard<std::mutex> lock(finding);
                        found[u].insert(found[u].end(), list.entries, list.entries + list.held);
                    }
                }
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        });
        if (!failed && !stopped())
            for (size_t u = 0; u < found.size(); u++) {
                std::sort(found[u].begin(), found[u].end(), better<T>);
                write(u, found[u].data(), std::min<int64_t>(found[u].size(), all.n_best));
            }
        return !failed;
    }

  private:
    static constexpr int L = LANES<T>;
    const Ranking& all;
    int64_t height, splits = 1;  // users that share packed items; parts that the items are cut into
    int64_t width, group;        // items of a part, and of those that are packed at a time

    // What a thread works in.
    struct Work {
        Room<T> users, items, scores;
        Room<Scored<T>> entries;
        std::vector<List<T>> lists;
        std::vector<Cursor<Index>> filtered;

        explicit Work(const Ranker& r)
            : users(up(r.height, L) * r.all.k), items(r.group * r.all.k), scores(USERS * PANELS * L),
              entries(r.height * List<T>::room(r.all.n_best)), lists(r.height), filtered(r.height) {}
    };

    bool stopped() const { return all.stop && __atomic_load_n(all.stop, __ATOMIC_RELAXED); }

    // What is filtered for a user, from an item on.
    Cursor<Index> filter(int64_t user, int64_t item) const {
        if (!all.indptr) return {nullptr, nullptr};
        const Index* indices = static_cast<const Index*>(all.indices);
        const Index* end = indices + all.indptr[user + 1];
        return {std::lower_bound(indices + all.indptr[user], end, item), end};
    }

    // Leaves the best of some items for some users in their lists.
    void scan(int64_t first, int64_t n, int64_t begin, int64_t end, Work& work) const {
        const T *users = static_cast<const T*>(all.users), *items = static_cast<const T*>(all.items);
        pack<T>(users + first * all.k, n, all.k, work.users);
        for (int64_t u = 0; u < n; u++) {
            work.lists[u] = {work.entries + u * List<T>::room(all.n_best), all.n_best};
            work.filtered[u] = filter(first + u, begin);
        }
        int64_t item = begin;
        if (n == 1)
            for (; item + L <= end && !stopped(); item += L) {
                score_one<T>(users + first * all.k, items + item * all.k, all.k, work.scores);
                sift<1>(work.scores, 0, item, end, work);
            }
        for (; item < end && !stopped(); item += group) {
            const int64_t stop = std::min(item + group, end);
            pack<T>(items + item * all.k, stop - item, all.k, work.items);
            for (int64_t u = 0; u < n; u += USERS) {
                const T* some = work.users + u / L * L * all.k + u % L;
                for (int64_t i = item; i < stop; i += L * PANELS) {
                    score<T>(some, work.items + (i - item) * all.k, all.k, work.scores);
                    for (int64_t m = 0; m < std::min<int64_t>(USERS, n - u); m++)
                        sift<PANELS>(work.scores + L * PANELS * m, u + m, i, stop, work);
                }
            }
        }
    }

    // Adds to a user's list those of N vectors of scores that exceed its floor.
    template <int N>
    void sift(const T* scores, int64_t user, int64_t item, int64_t end, Work& work) const {
        const T floor = work.lists[user].floor;
        uint64_t hits = 0;
        UNROLL for (int i = 0; i < N; i++) hits |= uint64_t(above(load(scores + L * i), floor)) << L * i;
        if (hits) take(hits, scores, user, item, end, work);
    }

    // Adds scores that are not filtered, one for each bit.
    void take(uint64_t hits, const T* scores, int64_t user, int64_t first, int64_t end, Work& work) const {
        for (; hits; hits &= hits - 1) {
            const int lane = __builtin_ctzll(hits);
            const int64_t item = first + lane;
            if (item >= end) break;
            if ((all.everywhere && all.everywhere[item]) || work.filtered[user].meets(item)) continue;
            work.lists[user].add({scores[lane], int32_t(item)});
        }
    }

    // Writes the best, which are sorted; behind them, where they are fewer, others by id, then
    // filtered items by id.
    void write(int64_t user, Scored<T>* found, int64_t n) const {
        int32_t* ids = all.ids + user * all.n_best;
        T* scores = static_cast<T*>(all.scores) + user * all.n_best;
        for (int64_t i = 0; i < n; i++) {
            ids[i] = found[i].item;
            scores[i] = found[i].score;
        }
        if (n == all.n_best) return;
        std::fill(scores + n, scores + all.n_best, std::numeric_limits<T>::lowest());
        std::sort(found, found + n, [](const Scored<T>& a, const Scored<T>& b) { return a.item < b.item; });
        int64_t place = n;
        for (const bool wanted : {false, true}) {
            Cursor<Index> filtered = filter(user, 0);
            const Scored<T>* next = found;
            for (int64_t item = 0; item < all.n_items && place < all.n_best; item++) {
                if (next < found + n && next->item == item) next++;
                else if (((all.everywhere && all.everywhere[item]) | filtered.meets(item)) == wanted)
                    ids[place++] = int32_t(item);
            }
        }
    }
};

template <class T>
int run(const Ranking& ranking) {
    return ranking.wide_indices ? Ranker<T, int64_t>(ranking).run() : Ranker<T, int32_t>(ranking).run();
}

}  // namespace

extern "C" {

// 1, or 0 where memory ran out.
int top_k_float(const Ranking* ranking) { return run<float>(*ranking); }
int top_k_double(const Ranking* ranking) { return run<double>(*ranking); }
}
