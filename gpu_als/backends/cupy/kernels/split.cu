// Very long rows in their primal form, each cut into segments that different blocks work on.
//
// Four kernels, in this order, all with one block of EDGE * EDGE threads for each segment or row:
// split_gram writes every segment's share of the Gram and right-hand side; split_solve adds a
// row's shares in order, always the same one, and solves; split_check takes each segment's
// predictions; split_finish adds those and judges the row. No atomics: results repeat to the bit.
//
// `segments` lists, for each segment, the place of its row in `rows`, its first entry and how many;
// the segments of row i are bounds[i] to bounds[i + 1]. Shares lie in `shares`, SHARE floats for
// each segment: the panels as they are in shared memory, later the check's sums and the loss.
//
// Macros and shared memory: as in primal.cu.
#include "check.cuh"
#include "gram.cuh"
#include "solve.cuh"

using Shape = GramShape<EDGE, UNITS>;
constexpr int THREADS = Shape::kThreads;
constexpr int SIZE = Shape::kSize;
constexpr int SHARE = panel_floats(SIZE);
using Check = Checker<THREADS, SIZE>;

__host__ __device__ constexpr int larger(int a, int b) {
    return a > b ? a : b;
}
constexpr int AREA = larger(larger(accumulate_floats<Shape>(), SHARE), Check::kFloats);

struct Segment {
    int64 row;  // place in `rows`
    int64 first;
    int64 count;
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_gram(HalfSweep problem, const int64* rows_, const Segment* segments_, float* shares_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    const Segment segment = segments_[blockIdx.x];
    const Row row = row_of(problem, Global<const int64>(rows_)[segment.row], v);
    const Panels<Global<float>> share = {Global<float>(shares_) + int64(blockIdx.x) * SHARE, SIZE};
    Gram<EDGE, UNITS> gram;
    float rhs = 0.f;
    accumulate<Shape>(problem, row, segment.first, segment.count, gram, rhs,
                      shared + Vectors<THREADS, SIZE>::kFloats);
    gram.store(share);
    if (threadIdx.x < SIZE) *share.element(SIZE, threadIdx.x) = rhs;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_solve(HalfSweep problem, const int64* rows_, const int64* bounds_, const float* shares_,
            float* solutions_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> area = shared + Vectors<THREADS, SIZE>::kFloats;
    const SharedPanels lhs = {area, SIZE};
    Global<const int64> bounds = bounds_;
    Global<const float> shares = shares_;
    const Row row = row_of(problem, Global<const int64>(rows_)[blockIdx.x], v);
    const int64 first = bounds[blockIdx.x], last = bounds[blockIdx.x + 1];
    for (int e = threadIdx.x; e < SHARE; e += THREADS) {
        float sum = 0.f;
        for (int64 s = first; s < last; ++s) sum += shares[s * SHARE + e];
        area[e] = sum;
    }
    __syncthreads();
    finish_system(problem, row, lhs, v);
    const bool good = SystemSolver<THREADS, SIZE>::solve(problem, row, lhs, v, area + AREA);
    // For split_finish: z and rhs, NaN where there is no solution.
    Global<float> solution = Global<float>(solutions_) + int64(blockIdx.x) * 2 * SIZE;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) {
        solution[c] = good ? v.z[c] : no_number();
        solution[SIZE + c] = v.rhs[c];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_check(HalfSweep problem, const int64* rows_, const Segment* segments_,
            const float* solutions_, float* shares_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> area = shared + Vectors<THREADS, SIZE>::kFloats;
    const Segment segment = segments_[blockIdx.x];
    const Row row = row_of(problem, Global<const int64>(rows_)[segment.row], v);
    Global<const float> solution = Global<const float>(solutions_) + segment.row * 2 * SIZE;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) v.z[c] = solution[c];
    __syncthreads();
    const float loss = Check::run(problem, row, segment.first, segment.count, v.z, area, v.scratch);
    Global<float> share = Global<float>(shares_) + int64(blockIdx.x) * SHARE;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) share[c] = area[c];
    if (threadIdx.x == 0) share[SIZE] = loss;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_finish(HalfSweep problem, const int64* rows_, const int64* bounds_, const float* shares_,
             const float* solutions_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> area = shared + Vectors<THREADS, SIZE>::kFloats;
    Global<const int64> bounds = bounds_;
    Global<const float> shares = shares_;
    const Row row = row_of(problem, Global<const int64>(rows_)[blockIdx.x], v);
    const int64 first = bounds[blockIdx.x], last = bounds[blockIdx.x + 1];
    Global<const float> solution = Global<const float>(solutions_) + int64(blockIdx.x) * 2 * SIZE;
    float loss = 0.f;
    for (int64 s = first; s < last; ++s) loss += shares[s * SHARE + SIZE];
    for (int c = threadIdx.x; c < SIZE; c += THREADS) {
        float sum = 0.f;
        for (int64 s = first; s < last; ++s) sum += shares[s * SHARE + c];
        area[c] = sum;
        v.z[c] = solution[c];
        v.rhs[c] = solution[SIZE + c];
    }
    __syncthreads();
    write_row(problem, row, true, loss, area, v);
}
