// Gram matrices of long rows: W^T sign W, the lower triangle, as a sum of outer products.
//
// Entries pass through shared memory TILE_ROWS at a time (Stage); while one tile is multiplied the
// next is on its way in registers. Padding entries and columns are zero.
//
// Two ways to multiply, with one interface (add a staged tile; store to panels):
//
// FloatGram: threads form an Edge x Edge grid; thread (ty, tx) keeps the elements with rows
// 2 ty + e + 2 Edge a and columns 2 tx + f + 2 Edge b, e, f < 2, for a >= b, and reads pairs of
// neighbouring columns: a warp's reads fall on one bank each or are broadcasts.
//
// TensorGram: each warp takes 32 x 32 tiles of the lower triangle in turn, on tensor cores. Every
// factor is split into two TF32 numbers, w = high + low, and w w' is high high' + high low' + low
// high' ("3xTF32"), which keeps float32's accuracy: what is dropped is 2^-22 of the product.
// Tensor cores round toward zero, so the products of one tile make a sum of their own, and only
// those sums are added up in float32: else the error would grow with the row's length.
// A stage row is 8 mod 32 floats long, which puts the 4 x 8 elements a warp reads on 32 banks.
#pragma once
#include "cholesky.cuh"

// Sizes of the Gram of 2 Edge Units columns, by Edge x Edge threads. Units is at most Edge / 2.
template <int Edge, int Units>
struct GramShape {
    static constexpr int kThreads = Edge * Edge;
    static constexpr int kSize = 2 * Edge * Units;  // columns, a multiple of 32
    static constexpr int kStageStride = kSize + 8;
#ifdef TENSOR_CORES
    static constexpr int kTileRows = 8;  // of one product
#else
    static constexpr int kTileRows = kSize > 128 ? 8 : 16;
#endif
    static constexpr int kStageFloats = kTileRows * kStageStride;
};

// One tile of entries on its way from `fixed` to shared memory. It is scaled when it arrives, not
// when it leaves: a product would wait for its load, and everything behind it too.
template <class Shape>
struct Tile {
    static constexpr int kQuads = Shape::kSize / 4;
    static constexpr int kSteps = (Shape::kTileRows * kQuads + Shape::kThreads - 1) / Shape::kThreads;
    float4 held[kSteps];

    // `index` is that of the tile's entries, `count` of which exist.
    __device__ __forceinline__ void load(const HalfSweep& problem, Shared<int> index, int count) {
        count = min(count, Shape::kTileRows);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int e = threadIdx.x + step * Shape::kThreads, i = e / kQuads, c = 4 * (e % kQuads);
            held[step] = i < count && c < problem.stride
                             ? load_factors(problem, index[i], c)
                             : zero4();
        }
    }

    // `size` is that of the tile's entries.
    __device__ __forceinline__ void store(const Row& row, Shared<float> size,
                                          Shared<float> stage) const {
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int e = threadIdx.x + step * Shape::kThreads, i = e / kQuads, c = 4 * (e % kQuads);
            if (i < Shape::kTileRows)
                store4(stage + i * Shape::kStageStride + c, scaled(row, held[step], size[i], c));
        }
    }
};

template <int Edge, int Units>
struct FloatGram {
    using Shape = GramShape<Edge, Units>;
    float2 sum[Units * (Units + 1) / 2][2];  // [pair a >= b][e], components f

    __device__ __forceinline__ FloatGram() {
#pragma unroll
        for (auto& unit : sum) unit[0] = unit[1] = make_float2(0.f, 0.f);
    }

    __device__ __forceinline__ void add(Shared<float> stage, Shared<float> sign) {
        const int tx = threadIdx.x % Edge, ty = threadIdx.x / Edge;
#pragma unroll 4
        for (int i = 0; i < Shape::kTileRows; ++i) {
            Shared<float> row = stage + i * Shape::kStageStride;
            float2 left[Units];
#pragma unroll
            for (int a = 0; a < Units; ++a) {
                left[a] = load2(row + 2 * (ty + Edge * a));
#ifdef SIGNED
                left[a].x *= sign[i], left[a].y *= sign[i];
#endif
            }
#pragma unroll
            for (int b = 0; b < Units; ++b) {
                const float2 right = load2(row + 2 * (tx + Edge * b));
#pragma unroll
                for (int a = b; a < Units; ++a) {
                    float2(&to)[2] = sum[a * (a + 1) / 2 + b];
                    to[0].x = fmaf(left[a].x, right.x, to[0].x);
                    to[0].y = fmaf(left[a].x, right.y, to[0].y);
                    to[1].x = fmaf(left[a].y, right.x, to[1].x);
                    to[1].y = fmaf(left[a].y, right.y, to[1].y);
                }
            }
        }
    }

    template <class Pointer>
    __device__ __forceinline__ void store(Panels<Pointer> to) const {
        const int tx = threadIdx.x % Edge, ty = threadIdx.x / Edge;
#pragma unroll
        for (int a = 0; a < Units; ++a)
#pragma unroll
            for (int b = 0; b <= a; ++b)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float2 value = sum[a * (a + 1) / 2 + b][e];
                    Pointer at = to.element(2 * (ty + Edge * a) + e, 2 * (tx + Edge * b));
                    at[0] = value.x;
                    at[1] = value.y;
                }
    }
};

#ifdef TENSOR_CORES
// c += a b on one warp: a (16, 8), b (8, 8), c (16, 8), laid out over lanes as PTX has it for
// mma.m16n8k8.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&c)[4], const unsigned (&a)[4],
                                                const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// value = high + low. `high` is rounded to TF32's 10 bits of fraction by hand, since there is no
// instruction for it; of `low` tensor cores ignore what is too much.
__device__ __forceinline__ void split_tf32(float value, unsigned& high, unsigned& low) {
    high = (__float_as_uint(value) + 0x1000u) & ~0x1fffu;
    low = __float_as_uint(value - __uint_as_float(high));
}

template <int Edge, int Units>
struct TensorGram {
    using Shape = GramShape<Edge, Units>;
    static constexpr int kWarps = Shape::kThreads / 32;
    static constexpr int kEdge = Shape::kSize / 32;  // 32 x 32 tiles along the diagonal
    static constexpr int kTiles = kEdge * (kEdge + 1) / 2;
    static constexpr int kTurns = (kTiles + kWarps - 1) / kWarps;
    float sum[kTurns][2][4][4];  // [tile][16 rows][8 columns][as mma has them]

    __device__ __forceinline__ TensorGram() {
#pragma unroll
        for (auto& tile : sum)
#pragma unroll
            for (int e = 0; e < 32; ++e) tile[e / 16][e / 4 % 4][e % 4] = 0.f;
    }

    // Tile number -> its place (r >= c) in the triangle.
    static __device__ __forceinline__ void place(int tile, int& r, int& c) {
        r = 0;
#pragma unroll
        for (int i = 1; i < kEdge; ++i) r += tile >= i * (i + 1) / 2;
        c = tile - r * (r + 1) / 2;
    }

    __device__ __forceinline__ void add(Shared<float> stage, Shared<float> sign) {
        const int thread = read_thread_number(), lane = thread % 32, warp = thread / 32;
        const int g = lane / 4, t = lane % 4;
        Shared<float> near = stage + t * Shape::kStageStride + g;
        Shared<float> far = near + 4 * Shape::kStageStride;
#ifdef SIGNED
        const float near_sign = sign[t], far_sign = sign[t + 4];
#else
        const float near_sign = 1.f, far_sign = 1.f;
#endif
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int tile = warp + kWarps * turn;
            if (tile >= kTiles) break;
            int r, c;
            place(tile, r, c);
            unsigned high[2][4], low[2][4];
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                const int at = 32 * r + 16 * m;
                split_tf32(near_sign * near[at], high[m][0], low[m][0]);
                split_tf32(near_sign * near[at + 8], high[m][1], low[m][1]);
                split_tf32(far_sign * far[at], high[m][2], low[m][2]);
                split_tf32(far_sign * far[at + 8], high[m][3], low[m][3]);
            }
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int at = 32 * c + 8 * n;
                unsigned right[2], rest[2];
                split_tf32(near[at], right[0], rest[0]);
                split_tf32(far[at], right[1], rest[1]);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
                    float part[4] = {};
                    mma_tf32_16x8x8(part, low[m], right);
                    mma_tf32_16x8x8(part, high[m], rest);
                    mma_tf32_16x8x8(part, high[m], right);
#pragma unroll
                    for (int e = 0; e < 4; ++e) sum[turn][m][n][e] += part[e];
                }
                __syncwarp();  // nothing is to be loaded ahead: registers are short
            }
        }
    }

    template <class Pointer>
    __device__ __forceinline__ void store(Panels<Pointer> to) const {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int tile = warp + kWarps * turn;
            if (tile >= kTiles) break;
            int r, c;
            place(tile, r, c);
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
                for (int n = 0; n < 4; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        *to.element(32 * r + 16 * m + g + 8 * (e / 2),
                                    32 * c + 8 * n + 2 * t + e % 2) = sum[turn][m][n][e];
        }
    }
};

template <int Edge, int Units>
using Gram = TensorGram<Edge, Units>;
#else
template <int Edge, int Units>
using Gram = FloatGram<Edge, Units>;
#endif

// Shared memory of `accumulate`: the entries of one strip, kThreads at a time, and two tiles.
template <class Shape>
__host__ __device__ constexpr int accumulate_floats() {
    return 4 * Shape::kThreads + 2 * Shape::kStageFloats;
}

// Adds entries first .. first + count - 1 to `gram`, and W^T tau of column threadIdx.x to `rhs`;
// leaves in squares[threadIdx.x] the thread's share of tau^T tau. Ends with a barrier.
template <class Shape, class Sum>
__device__ __forceinline__ void accumulate(const HalfSweep& problem, const Row& row, int64 first,
                                           int count, Sum& gram, float& rhs, Shared<float> squares,
                                           Shared<float> shared) {
    constexpr int kStrip = Shape::kThreads, kRows = Shape::kTileRows;
    const int tid = threadIdx.x;
    Shared<float> size = shared;
    Shared<float> sign = size + kStrip;
    Shared<float> tau = sign + kStrip;
    Shared<int> index = shared_as<int>(tau + kStrip);
    Shared<float> stages = tau + 2 * kStrip;
    squares[tid] = 0.f;
    for (int left = count; left > 0; left -= kStrip, first += kStrip) {
        const int here = min(kStrip, left);
        Entry entry;
        if (tid < here) entry = Entry(problem, first + tid);
        index[tid] = entry.index, size[tid] = entry.size, sign[tid] = entry.sign, tau[tid] = entry.tau;
        squares[tid] = fmaf(entry.tau, entry.tau, squares[tid]);
        __syncthreads();
        Tile<Shape> tile;
        tile.load(problem, index, here);
        for (int done = 0; done < here; done += kRows) {
            // Two places take turns, so one barrier a tile will do.
            Shared<float> stage = stages + done / kRows % 2 * Shape::kStageFloats;
            tile.store(row, size + done, stage);
            __syncthreads();
            const int next = done + kRows;
            if (next < here) tile.load(problem, index + next, here - next);
            gram.add(stage, sign + done);
            if (tid < Shape::kSize) {
#pragma unroll 4
                for (int i = 0; i < kRows; ++i)
                    rhs = fmaf(tau[done + i], stage[i * Shape::kStageStride + tid], rhs);
            }
        }
        __syncthreads();
    }
}
