// Very long rows in their primal form, each cut into segments that different blocks work on.
//
// Two kernels, one after the other, with one block of EDGE * EDGE threads for each segment or row:
// split_gram writes every segment's share of the Gram, of the right-hand side and of tau^T tau;
// split_solve adds a row's shares in order, always the same one, solves, and puts the solution into
// the system. No atomics: results repeat to the bit.
//
// `segments` lists, for each segment, the place of its row in `rows`, its first entry and how many;
// the segments of row i are bounds[i] to bounds[i + 1]. Each segment's share in `shares` is SHARE
// floats, the panels as they are in shared memory, one more, and what keeps 16-byte reads aligned;
// that of a row's first segment then takes the whole system, for the check. Where a matrix
// is ill-conditioned, its block passes all of the row's entries (primal.cu).
//
// Macros: as in primal.cu. Shared memory, of each function its own (launch.py): the vectors, then the
// stages, or the panels and what the solver needs besides, or the check's sums.
#include "check.cuh"
#include "gram.cuh"
#include "solve.cuh"

using Shape = GramShape<EDGE, UNITS>;
constexpr int THREADS = Shape::kThreads;
constexpr int SIZE = Shape::kSize;
constexpr int PANELS = panel_floats(SIZE);
constexpr int SHARE = PANELS + 4;
using Check = Checker<THREADS, SIZE>;

constexpr int kVectors = Vectors<THREADS, SIZE>::kFloats;
constexpr int kGramFloats = kVectors + accumulate_floats<Shape>();
#if SOLVER == CONJUGATE_GRADIENT
constexpr int kChecked = 0;
#else
constexpr int kChecked = Check::kFloats;
#endif
constexpr int kSolveFloats =
    kVectors + PANELS + larger(SystemSolver<THREADS, SIZE>::kFloats, kChecked);

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
    Global<float> share = Global<float>(shares_) + int64(blockIdx.x) * SHARE;
    const Panels<Global<float>> panels = {share, SIZE};
    Gram<EDGE, UNITS> gram;
    float rhs = 0.f;
    accumulate<Shape>(problem, row, segment.first, int(segment.count), gram, rhs, v.scratch,
                      shared + kVectors);
    gram.store(panels);
    if (threadIdx.x < SIZE) *panels.element(SIZE, threadIdx.x) = rhs;
    const float squares = block_sum<THREADS>(v.scratch[read_thread_number()], v.scratch);
    if (threadIdx.x == 0) share[PANELS] = squares;
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
split_solve(HalfSweep problem, const int64* rows_, const int64* bounds_, float* shares_) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> area = shared + kVectors;
    Shared<float> rest = area + PANELS;
    const SharedPanels lhs = {area, SIZE};
    Global<const int64> bounds = bounds_;
    const auto number = [&] { return int64(Global<const int64>(rows_)[read_block_number()]); };
    const int64 first = bounds[blockIdx.x], last = bounds[blockIdx.x + 1];
    Global<float> share = Global<float>(shares_) + first * SHARE;  // of the first segment
    int condition;
    {
        const Row row = row_of(problem, number(), v);
        for (int e = threadIdx.x; e <= PANELS; e += THREADS) {
            float sum = 0.f;
            for (int64 s = 0; s < last - first; ++s) sum += share[s * SHARE + e];
            if (e < PANELS)
                area[e] = sum;
            else
                *v.squares = problem.squared_loss ? sum : 0.f;
        }
        __syncthreads();
        finish_system(problem, row, lhs, v);
        for (int e = threadIdx.x; e < PANELS; e += THREADS) share[e] = area[e];
        condition = SystemSolver<THREADS, SIZE>::solve(problem, row, lhs, v, rest);
    }
    const Row row(problem, number(), v.scale);
    const bool kept = condition != kIll;
    float loss = *v.squares, own;
    if (kept) {
        own = misfit_of(Panels<Global<float>>{share, SIZE}, v.diagonal, v);
    } else {
        loss = Check::run(problem, row, row.first, int(row.count), v.z, rest, v.scratch);
        own = complete_misfit(problem, row, rest, v);
    }
    write_row(problem, row, condition, loss, own, kept ? v.diagonal : rest, lhs, v);
}
