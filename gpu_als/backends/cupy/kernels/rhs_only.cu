// Right-hand sides of entries that have no gram weight: out = sum t y over a row's entries.
//
// WARPS warps share a row. Each takes every WARPS-th entry, kAhead of them at the same time; lanes
// take columns. The warps' sums are added in order. So a row's sum follows from its entries alone,
// to the last bit, whatever else is launched.
//
// Shared memory: a sum of every warp for each column of a pass; none for one warp.
//
// Macros: WARPS; DOUBLE for float64, WIDE for indices of 64 bits.
#include "memory.cuh"

#ifdef DOUBLE
using Real = double;
#else
using Real = float;
#endif
#ifdef WIDE
using Index = int64;
#else
using Index = int;
#endif

constexpr int kOwn = 4;  // columns of a lane in one pass
constexpr int kPass = 32 * kOwn;
constexpr int kAhead = 4;

// Row i of the launch is row rows[i], or first + i where rows is null; i itself is chosen[block], or
// the block's number where chosen is null. Without a choice, rows of more than `longest` entries
// are left out. Its sum goes to row places[i] of `out`, or to row i.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
rhs_only(const int64* indptr_, const Index* indices_, const Real* targets_, const Real* fixed_,
         int k, const int64* rows_, int64 first, const int64* chosen_, int64 longest,
         const int64* places_, Real* out_, int64 out_stride) {
    SHARED_MEMORY(shared);
    Shared<Real> sums = shared_as<Real>(shared);
    Global<const int64> indptr = indptr_, rows = rows_, chosen = chosen_, places = places_;
    Global<const Index> indices = indices_;
    Global<const Real> targets = targets_, fixed = fixed_;
    Global<Real> out = out_;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int64 i = chosen_ == nullptr ? int64(blockIdx.x) : int64(chosen[blockIdx.x]);
    const int64 row = rows_ == nullptr ? first + i : int64(rows[i]);
    const int64 begin = indptr[row], count = indptr[row + 1] - begin;
    if (chosen_ == nullptr && count > longest) return;
    const int64 to = (places_ == nullptr ? i : int64(places[i])) * out_stride;

    for (int pass = 0; pass < k; pass += kPass) {
        Real sum[kOwn] = {};
        for (int64 entry = warp; entry < count; entry += kAhead * WARPS) {
            Real target[kAhead], factor[kAhead][kOwn];
#pragma unroll
            for (int a = 0; a < kAhead; ++a) {
                const bool valid = entry + a * WARPS < count;
                const int64 place = begin + (valid ? entry + a * WARPS : entry);
                const int64 at = int64(indices[place]) * k;
                target[a] = valid ? Real(targets[place]) : Real(0);
#pragma unroll
                for (int o = 0; o < kOwn; ++o) {
                    const int c = pass + lane + 32 * o;
                    factor[a][o] = valid && c < k ? Real(fixed[at + c]) : Real(0);
                }
            }
#pragma unroll
            for (int a = 0; a < kAhead; ++a)
#pragma unroll
                for (int o = 0; o < kOwn; ++o) sum[o] += target[a] * factor[a][o];
        }
#if WARPS > 1
#pragma unroll
        for (int o = 0; o < kOwn; ++o) sums[warp * kPass + lane + 32 * o] = sum[o];
        __syncthreads();
        for (int c = threadIdx.x; c < min(kPass, k - pass); c += 32 * WARPS) {
            Real total = 0;
            for (int w = 0; w < WARPS; ++w) total += sums[w * kPass + c];
            out[to + pass + c] = total;
        }
        __syncthreads();
#else
#pragma unroll
        for (int o = 0; o < kOwn; ++o)
            if (pass + lane + 32 * o < k) out[to + pass + lane + 32 * o] = sum[o];
#endif
    }
}
