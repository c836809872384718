// The n_best items of every user, without ever holding the scores.
//
//     scores = users items^T,    largest first, equal scores by lowest item
//
// top_k_scan multiplies tiles of users x items in registers and, before the next tile, keeps of
// each user's scores those that beat the user's n_best-th best so far. Such candidates wait in a
// short buffer; a full buffer is sorted and merged into the user's list, which raises the score to
// beat. Soon almost no score beats it, so that the scan runs at the pace of the product. The
// filters are asked only about candidates. The items may be split over blocks: every split, and
// every warp of a block that has items of its own, leaves a list. top_k_merge makes one list of
// several, and results of the last.
//
// Score and item form one integer key that orders candidates completely, so the result depends
// neither on the tiling nor on the order of events. NaN and scores below the lowest finite number
// count as that number, -0 as 0; filtered items come after all others. The key 0 is no item.
//
// The score of an item adds its columns in rising order, whatever the block: finite factors give
// inf or -inf where they overflow, never NaN.
//
// Thread mapping of the scan. A warp owns 16 users outright: it computes all their scores of a
// tile, 16 x 4 for each lane (items lane, lane + 32, ...), and edits their lists without atomics
// or barriers of the block. A block is USER_WARPS x ITEM_WARPS warps. Many users: the warps share
// the tile's items, which are then read from global memory once for 64 or 128 users. Few users:
// the warps share the users.
//
// Shared memory of the scan: 16 columns of the tile's users and items, in rows of 20 floats, so
// that 16-byte reads of eight neighbouring rows meet no bank conflict, while reads of a user's
// row serve all lanes at once; and the buffers, 64 candidates of each user of each warp. Nothing
// in it grows with the number of factors, of items or with n_best: the lists, which grow with
// n_best, are in global memory, where each 64 candidates touch them once. Columns pass through
// registers on their way, loaded while the ones before are multiplied.
//
// Macros: USER_WARPS, ITEM_WARPS. BLOCKS, the blocks that share a multiprocessor.
#include "memory.cuh"
#include "reduce.cuh"

using Key = unsigned long long;

constexpr int USERS = 16;          // of a warp
constexpr int ITEMS = 4;           // of a lane
constexpr int COLUMNS = 16;        // in shared memory
constexpr int ROW = COLUMNS + 4;   // floats from one row to the next
constexpr int QUADS = COLUMNS / 4;
constexpr int PENDING = 64;        // candidates that wait; two for each lane
constexpr float kLowest = -3.402823466e+38f;

constexpr int THREADS = 32 * USER_WARPS * ITEM_WARPS;
constexpr int BLOCK_USERS = USERS * USER_WARPS;
constexpr int BLOCK_ITEMS = 32 * ITEMS * ITEM_WARPS;
constexpr int USER_PIECES = BLOCK_USERS * QUADS / THREADS;  // that a thread carries
constexpr int ITEM_PIECES = BLOCK_ITEMS * QUADS / THREADS;
static_assert(BLOCK_USERS * QUADS % THREADS == 0 && BLOCK_ITEMS * QUADS % THREADS == 0, "");

// The score in the high word, as an integer of the same order; the lower item is the larger.
__device__ __forceinline__ Key key_of(float score, unsigned item) {
    const int bits = __float_as_int(fmaxf(score, kLowest) + 0.f);
    const unsigned ordered = bits < 0 ? ~unsigned(bits) : unsigned(bits) | 0x80000000u;
    return Key(ordered) << 32 | ~item;
}
// NaN for the key 0
__device__ __forceinline__ float score_of(Key key) {
    const unsigned ordered = unsigned(key >> 32);
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}
__device__ __forceinline__ unsigned item_of(Key key) {
    return ~unsigned(key);
}

// The items that a user must not get.
struct Filter {
    const int64* indptr;         // (n_users + 1), or null
    const int* indices;          // rising in each row
    const unsigned* everywhere;  // a bit for each item, or null: filtered for all users

    __device__ bool hides(unsigned user, unsigned item) const {
        if (everywhere != nullptr &&
            Global<const unsigned>(everywhere)[item / 32] >> item % 32 & 1u)
            return true;
        if (indptr == nullptr) return false;
        Global<const int> row = indices;
        int64 begin = Global<const int64>(indptr)[user];
        const int64 end = Global<const int64>(indptr)[int64(user) + 1];
        int64 stop = end;
        while (begin < stop) {
            const int64 middle = begin + (stop - begin) / 2;
            if (unsigned(row[middle]) < item)
                begin = middle + 1;
            else
                stop = middle;
        }
        return begin < end && unsigned(row[begin]) == item;
    }
};

// How many of `count` falling keys are above `key`.
__device__ __forceinline__ int count_above(Shared<Key> keys, int count, Key key) {
    int above = 0;
#pragma unroll
    for (int step = PENDING; step > 0; step /= 2)
        if (above + step <= count && keys[above + step - 1] > key) above += step;
    return above;
}

// Merges the pending keys of one user into the user's list of n_best, which falls, by one warp.
__device__ __forceinline__ void absorb(Global<Key> best, int n_best, Shared<Key> pending,
                                       int count) {
    const int lane = threadIdx.x % 32;
    // Sort: a key's place is the number of keys above it.
    __syncwarp();
    const Key low = lane < count ? pending[lane] : Key(0);
    const Key high = lane + 32 < count ? pending[lane + 32] : Key(0);
    int low_place = 0, high_place = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
        const Key other = pending[i];
        low_place += other > low;
        high_place += other > high;
    }
    __syncwarp();
    if (lane < count) pending[low_place] = low;
    if (lane + 32 < count) pending[high_place] = high;
    __syncwarp();
    // Merge, from the end of the list: keys only move back, to places that have been read. The
    // pending keys between a key of the list and the next are put behind the former.
    int place = (n_best - 1) / 32 * 32 + lane;
    int after = count;
    Key key = place < n_best ? best[place] : Key(0);
#pragma unroll 1
    for (; place >= lane; place -= 32) {
        const Key before = place >= 32 ? best[place - 32] : Key(0);
        const int above = count_above(pending, count, key);
        int next = __shfl_down_sync(kFullWarp, above, 1);
        if (lane == 31) next = after;
        after = __shfl_sync(kFullWarp, above, 0);
        __syncwarp();  // all have read: shuffles do not order memory
        if (place < n_best) {
            if (above > 0 && place + above < n_best) best[place + above] = key;
#pragma unroll 1
            for (int i = above; i < next && place + 1 + i < n_best; ++i)
                best[place + 1 + i] = pending[i];
        }
        if (after == 0) break;  // all before stay
        key = before;
    }
#pragma unroll 1
    for (int i = lane; i < min(after, n_best); i += 32) best[i] = pending[i];
    __syncwarp();
}

// The lists of a warp's users. Lane u knows of user u how many candidates wait and the score that
// the next one has to beat: NaN, which nothing fails to beat, until the list is full. Of equal
// scores the later item loses, so only a larger one is worth a look.
struct Lists {
    Global<Key> best;     // of the first user
    int64 spacing;        // from one user's to the next
    int n_best;
    Shared<Key> pending;  // of the first user
    int count;
    float threshold;

    __device__ void begin(int users) {
        count = 0;
        threshold = score_of(0);
#pragma unroll 1
        for (int user = 0; user < users; ++user)
#pragma unroll 1
            for (int i = threadIdx.x % 32; i < n_best; i += 32) best[user * spacing + i] = 0;
        __syncwarp();
    }

    __device__ __forceinline__ void flush(int user, int waiting) {
        Global<Key> own = best + user * spacing;
        absorb(own, n_best, pending + user * PENDING, waiting);
        const Key last = own[n_best - 1];
        if (threadIdx.x % 32 == user) count = 0, threshold = score_of(last);
    }

    // Takes the keys of the lanes that are `chosen`.
    __device__ __forceinline__ void add(int user, bool chosen, Key key) {
        const int lane = threadIdx.x % 32;
        const unsigned votes = __ballot_sync(kFullWarp, chosen);
        int waiting = __shfl_sync(kFullWarp, count, user);
        if (waiting + __popc(votes) > PENDING) {
            flush(user, waiting);
            waiting = 0;
        }
        if (chosen) pending[user * PENDING + waiting + __popc(votes & ((1u << lane) - 1))] = key;
        if (lane == user) count = waiting + __popc(votes);
    }

    __device__ void finish(int users) {
#pragma unroll 1
        for (int user = 0; user < users; ++user) {
            const int waiting = __shfl_sync(kFullWarp, count, user);
            if (waiting > 0) flush(user, waiting);
        }
    }
};

struct Scan {
    const float* users;  // (n_users, stride)
    const float* items;  // (n_items, stride)
    Key* lists;          // (n_users, n_lists, n_best)
    Filter filter;
    unsigned n_users;
    int stride;          // a multiple of 4
    int n_best;
    int n_lists;
};

__device__ __forceinline__ float4 load_piece(const float* rows, unsigned row, unsigned end,
                                             int stride, int column) {
    if (row >= end || column >= stride) return make_float4(0.f, 0.f, 0.f, 0.f);
    return load4(Global<const float>(rows) + int64(row) * stride + column);
}

// What a thread carries to shared memory: pieces of four columns of one row. Eight threads take
// rows r and r + 4, which lie in different halves of the banks.
struct Pieces {
    float4 of_users[USER_PIECES], of_items[ITEM_PIECES];

    static constexpr int STEP = THREADS / QUADS;  // rows from one piece of a thread to the next
    static __device__ __forceinline__ int row() {
        return threadIdx.x / 32 * 8 + threadIdx.x / 8 % 4 + threadIdx.x / 4 % 2 * 4;
    }
    static __device__ __forceinline__ int column() {
        return 4 * (threadIdx.x % QUADS);
    }

    __device__ __forceinline__ void load(const Scan& scan, unsigned user, unsigned item,
                                         unsigned end, int first_column) {
        const int c = first_column + column();
#pragma unroll
        for (int i = 0; i < USER_PIECES; ++i)
            of_users[i] = load_piece(scan.users, user + row() + STEP * i, scan.n_users,
                                     scan.stride, c);
#pragma unroll
        for (int i = 0; i < ITEM_PIECES; ++i)
            of_items[i] = load_piece(scan.items, item + row() + STEP * i, end, scan.stride, c);
    }

    __device__ __forceinline__ void store(Shared<float> users, Shared<float> items) const {
        const int at = row() * ROW + column();
#pragma unroll
        for (int i = 0; i < USER_PIECES; ++i) store4(users + at + STEP * ROW * i, of_users[i]);
#pragma unroll
        for (int i = 0; i < ITEM_PIECES; ++i) store4(items + at + STEP * ROW * i, of_items[i]);
    }
};

// sum[u][i] += users[u] . items[lane + 32 i] over `quads` times four columns, in rising order.
__device__ __forceinline__ void multiply(float (&sum)[USERS][ITEMS], Shared<float> users,
                                         Shared<float> items, int quads) {
    items += threadIdx.x % 32 * ROW;
#pragma unroll 1
    for (int quad = 0; quad < quads; ++quad, users += 4, items += 4) {
        float4 item[ITEMS];
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) item[i] = load4(items + 32 * ROW * i);
#pragma unroll
        for (int u = 0; u < USERS; ++u) {
            const float4 user = load4(users + ROW * u);
#pragma unroll
            for (int i = 0; i < ITEMS; ++i) {
                sum[u][i] = fmaf(user.x, item[i].x, sum[u][i]);
                sum[u][i] = fmaf(user.y, item[i].y, sum[u][i]);
                sum[u][i] = fmaf(user.z, item[i].z, sum[u][i]);
                sum[u][i] = fmaf(user.w, item[i].w, sum[u][i]);
            }
        }
    }
}

// Offers a tile's scores to the lists; `item` is the lane's first, `end` behind the last.
__device__ __forceinline__ void choose(const float (&sum)[USERS][ITEMS], Lists& lists,
                                       const Filter& filter, unsigned first_user, int users,
                                       unsigned item, unsigned end) {
    unsigned wanted = 0;  // users with a candidate
#pragma unroll
    for (int u = 0; u < USERS; ++u) {
        const float threshold = __shfl_sync(kFullWarp, lists.threshold, u);
        bool beaten = true;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) beaten = beaten && sum[u][i] <= threshold;
        if (!beaten) wanted |= 1u << u;
    }
    wanted &= (1u << users) - 1;
    if (!__any_sync(kFullWarp, wanted != 0)) return;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2)
        wanted |= __shfl_xor_sync(kFullWarp, wanted, distance);
    // One copy of the code for all users: registers have no addresses.
#pragma unroll 1
    for (; wanted != 0; wanted &= wanted - 1) {
        const int user = __ffs(wanted) - 1;
        float score[ITEMS];
#pragma unroll
        for (int u = 0; u < USERS; ++u)
#pragma unroll
            for (int i = 0; i < ITEMS; ++i)
                if (u == 0 || u == user) score[i] = sum[u][i];
#pragma unroll 1
        for (int i = 0; i < ITEMS; ++i) {
            const float threshold = __shfl_sync(kFullWarp, lists.threshold, user);
            const unsigned own = item + 32 * i;
            const bool chosen = own < end && !(fmaxf(score[0], kLowest) <= threshold) &&
                                !filter.hides(first_user + user, own);
            lists.add(user, chosen, key_of(score[0], own));
#pragma unroll
            for (int j = 1; j < ITEMS; ++j) score[j - 1] = score[j];
        }
    }
}

// The best of items `first_item` to `end` for the block's users; the lists from `first_list` on.
__device__ __forceinline__ void scan_items(const Scan& scan, Shared<float> users,
                                           unsigned block_user, unsigned first_item,
                                           unsigned end, int first_list) {
    Shared<float> items = users + BLOCK_USERS * ROW;
    Shared<Key> pending = shared_as<Key>(items + BLOCK_ITEMS * ROW);

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int user_warp = warp / ITEM_WARPS, item_warp = warp % ITEM_WARPS;
    const unsigned first_user = block_user + user_warp * USERS;
    const int own_users = max(min(int(scan.n_users - first_user), USERS), 0);
    const int own_item = item_warp * 32 * ITEMS;

    Lists lists;
    lists.spacing = int64(scan.n_lists) * scan.n_best;
    lists.best = Global<Key>(scan.lists) + first_user * lists.spacing +
                 int64(first_list + item_warp) * scan.n_best;
    lists.n_best = scan.n_best;
    lists.pending = pending + warp * USERS * PENDING;
    lists.begin(own_users);

    // When a tile's scores are offered, the next pieces have left the registers already.
    Pieces pieces;
    pieces.load(scan, block_user, first_item, end, 0);
    pieces.store(users, items);
    for (unsigned tile = first_item; tile < end; tile += BLOCK_ITEMS) {
        float sum[USERS][ITEMS] = {};
        for (int column = 0; column < scan.stride; column += COLUMNS) {
            __syncthreads();
            const bool more = column + COLUMNS < scan.stride;
            pieces.load(scan, block_user, more ? tile : tile + BLOCK_ITEMS, end,
                        more ? column + COLUMNS : 0);
            if (own_users > 0)
                multiply(sum, users + user_warp * USERS * ROW, items + own_item * ROW,
                         min(QUADS, (scan.stride - column) / 4));
            __syncthreads();
            pieces.store(users, items);
        }
        if (own_users > 0)
            choose(sum, lists, scan.filter, first_user, own_users, tile + own_item + lane, end);
    }
    lists.finish(own_users);
}

// Block (x, y): users from x * BLOCK_USERS on, items from y * items_per_split on.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
top_k_scan(const float* users, const float* items, Key* lists, const int64* indptr,
           const int* indices, const unsigned* everywhere, unsigned n_users, unsigned n_items,
           unsigned items_per_split, int stride, int n_best) {
    SHARED_MEMORY(shared);
    const Scan scan = {users,   items,  lists,  {indptr, indices, everywhere},
                       n_users, stride, n_best, int(gridDim.y) * ITEM_WARPS};
    const unsigned first_item = blockIdx.y * items_per_split;
    scan_items(scan, shared, blockIdx.x * BLOCK_USERS, first_item,
               min(first_item + items_per_split, n_items), int(blockIdx.y) * ITEM_WARPS);
}

// Makes one list of `fan` lists of user blockIdx.x: the first of them, `spacing` lists apart, of
// group blockIdx.y. With `ids`, the last call of all: results are written there.
//
// Of two falling lists of the same length, one turned round, the larger of each pair are the best
// of both; they rise at most once and fall at most once, so that halving strides sort them. Shared
// memory: one list, its length rounded up to a power of two.
extern "C" __global__ void
top_k_merge(Key* lists, int* ids, float* scores, const int64* indptr, const int* indices,
            const unsigned* everywhere, unsigned n_items, int n_best, int n_lists, int fan,
            int spacing) {
    SHARED_MEMORY(shared);
    Shared<Key> best = shared_as<Key>(shared);
    const unsigned user = blockIdx.x;
    const int threads = blockDim.x, self = threadIdx.x;
    const int first = int(blockIdx.y) * fan * spacing;
    Global<Key> own = Global<Key>(lists) + (int64(user) * n_lists + first) * n_best;
    int size = 1;
    while (size < n_best) size *= 2;

    for (int i = self; i < size; i += threads) best[i] = i < n_best ? own[i] : Key(0);
    __syncthreads();
    for (int list = 1; list < fan && first + list * spacing < n_lists; ++list) {
        Global<const Key> other = own + int64(list) * spacing * n_best;
        if (other[0] <= best[n_best - 1]) continue;
        __syncthreads();
        for (int i = self; i < size; i += threads) {
            const int turned = size - 1 - i;
            const Key mine = best[i], theirs = turned < n_best ? other[turned] : Key(0);
            if (theirs > mine) best[i] = theirs;
        }
        __syncthreads();
        for (int stride = size / 2; stride > 0; stride /= 2) {
            for (int pair = self; pair < size / 2; pair += threads) {
                const int i = 2 * pair - (pair & (stride - 1));
                const Key left = best[i], right = best[i + stride];
                if (left < right) best[i] = right, best[i + stride] = left;
            }
            __syncthreads();
        }
    }
    if (ids == nullptr) {
        for (int i = self; i < n_best; i += threads) own[i] = best[i];
        return;
    }
    Global<int> own_ids = Global<int>(ids) + int64(user) * n_best;
    Global<float> own_scores = Global<float>(scores) + int64(user) * n_best;
    for (int i = self; i < n_best; i += threads) {
        const Key key = best[i];
        if (key != 0) own_ids[i] = int(item_of(key)), own_scores[i] = score_of(key);
    }
    // Filtered items follow, in order. Fewer than n_best items are not filtered, so this ends
    // before item 2 n_best.
    if (self >= 32 || best[n_best - 1] != 0) return;
    const Filter filter = {indptr, indices, everywhere};
    int place = 0;
    while (best[place] != 0) ++place;
    for (unsigned item = self; place < n_best; item += 32) {
        const bool hidden = item < n_items && filter.hides(user, item);
        const unsigned votes = __ballot_sync(kFullWarp, hidden);
        const int at = place + __popc(votes & ((1u << self) - 1));
        if (hidden && at < n_best) own_ids[at] = int(item), own_scores[at] = kLowest;
        place += __popc(votes);
    }
}
