// Very long rows in their primal form, each cut into segments that different blocks work on.
//
// Four kernels, in this order, all with one block of EDGE * EDGE threads for each segment or row:
// split_gram writes every segment's share of the Gram and right-hand side; split_solve adds a
// row's shares in order, always the same one, and solves; split_check takes each segment's
// predictions; split_finish adds those and judges the row. No atomics: results repeat to the bit.
//
// `segments` lists, for each segment, the place of its row in `rows`, its first entry and how many;
// the segments of row i are bounds[i] to bounds[i + 1]. Each segment's share in `shares` is SHARE
// floats, the panels as they are in shared memory; that of a row's first segment then takes the
// factored panels. `checks` holds CHECK floats for each segment, the check's sums and the loss;
// `solutions` 2 SIZE + 1 for each row: z, rhs and how its matrix looks.
//
// Macros: as in primal.cu. Shared memory, of each function its own (launch.py): the vectors, then the
// stages; the panels and what the solver needs besides; the check's sums; or the panels and one sum.
#include "check.cuh"
#include "gram.cuh"
#include "solve.cuh"

using Shape = GramShape<EDGE, UNITS>;
constexpr int THREADS = Shape::kThreads;
constexpr int SIZE = Shape::kSize;
constexpr int SHARE = panel_floats(SIZE);
constexpr int CHECK = SIZE + 1;
constexpr int SOLUTION = 2 * SIZE + 1;
using Check = Checker<THREADS, SIZE>;

constexpr int kVectors = Vectors<THREADS, SIZE>::kFloats;
constexpr int kGramFloats = kVectors + accumulate_floats<Shape>();
constexpr int kSolveFloats = kVectors + SHARE + SystemSolver<THREADS, SIZE>::kFloats;
constexpr int kCheckFloats = kVectors + Check::kFloats;
constexpr int kFinishFloats = kVectors + SHARE + SIZE;

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
    accumulate<Shape>(problem, row, segment.first, int(segment.count), gram, rhs,
                      shared + kVectors);
    gram.store(share);
    if (threadIdx.x < SIZE) *share.element(SIZE, threadIdx.x) = rhs;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_solve(HalfSweep problem, const int64* rows_, const int64* bounds_, float* shares_,
            float* solutions_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> area = shared + kVectors;
    const SharedPanels lhs = {area, SIZE};
    Global<const int64> bounds = bounds_;
    Global<float> shares = shares_;
    const Row row = row_of(problem, Global<const int64>(rows_)[blockIdx.x], v);
    const int64 first = bounds[blockIdx.x], last = bounds[blockIdx.x + 1];
    for (int e = threadIdx.x; e < SHARE; e += THREADS) {
        float sum = 0.f;
        for (int64 s = first; s < last; ++s) sum += shares[s * SHARE + e];
        area[e] = sum;
    }
    __syncthreads();
    finish_system(problem, row, lhs, v);
    const int condition = SystemSolver<THREADS, SIZE>::solve(problem, row, lhs, v, area + SHARE);
    for (int e = threadIdx.x; e < SHARE; e += THREADS) shares[first * SHARE + e] = area[e];
    Global<float> solution = Global<float>(solutions_) + int64(blockIdx.x) * SOLUTION;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) {
        solution[c] = v.z[c];
        solution[SIZE + c] = v.rhs[c];
    }
    if (threadIdx.x == 0) solution[2 * SIZE] = float(condition);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_check(HalfSweep problem, const int64* rows_, const Segment* segments_,
            const float* solutions_, float* checks_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> sums = shared + kVectors;
    const Segment segment = segments_[blockIdx.x];
    const Row row = row_of(problem, Global<const int64>(rows_)[segment.row], v);
    Global<const float> solution = Global<const float>(solutions_) + segment.row * SOLUTION;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) v.z[c] = solution[c];
    __syncthreads();
    const float loss = Check::run(problem, row, segment.first, int(segment.count), v.z, sums, v.scratch);
    Global<float> check = Global<float>(checks_) + int64(blockIdx.x) * CHECK;
    for (int c = threadIdx.x; c < SIZE; c += THREADS) check[c] = sums[c];
    if (threadIdx.x == 0) check[SIZE] = loss;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_finish(HalfSweep problem, const int64* rows_, const int64* bounds_, const float* shares_,
             const float* solutions_, const float* checks_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> area = shared + kVectors;
    Shared<float> sums = area + SHARE;
    Global<const int64> bounds = bounds_;
    Global<const float> shares = shares_, checks = checks_;
    const Row row = row_of(problem, Global<const int64>(rows_)[blockIdx.x], v);
    const int64 first = bounds[blockIdx.x], last = bounds[blockIdx.x + 1];
    Global<const float> solution = Global<const float>(solutions_) + int64(blockIdx.x) * SOLUTION;
    const int condition = int(solution[2 * SIZE]);
    float loss = 0.f;
    for (int64 s = first; s < last; ++s) loss += checks[s * CHECK + SIZE];
    for (int c = threadIdx.x; c < SIZE; c += THREADS) {
        float sum = 0.f;
        for (int64 s = first; s < last; ++s) sum += checks[s * CHECK + c];
        sums[c] = sum;
        v.z[c] = solution[c];
        v.rhs[c] = solution[SIZE + c];
    }
    if (condition == kIll)  // the factored matrix, for refinement
        for (int e = threadIdx.x; e < SHARE; e += THREADS) area[e] = shares[first * SHARE + e];
    __syncthreads();
    write_row(problem, row, condition, loss, sums, {area, SIZE}, v);
}
