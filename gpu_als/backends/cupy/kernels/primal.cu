// Rows in their primal form, one block of EDGE * EDGE threads for each row.
//
//     (shift I + base + W^T sign W) z = b0 + W^T tau
//
// The entries stream through shared memory while the lower triangle of the Gram grows in
// registers (gram.cuh). It is stored to shared memory once, solved there (solve.cuh) and never
// reaches global memory. The solution is put into the system to check it. A factorisation overwrites
// that, so a copy is kept where there is room for two (KEPT); without, and where the matrix is
// ill-conditioned, so that the Gram's rounding has to be corrected too, there is a second pass over
// the entries (check.cuh).
//
// Shared memory (primal_floats in launch.py, kSharedFloats here): vectors; one area that serves the
// stages and the panels of the system in turn; another for the copy, for what the solver needs
// besides, and for the check's sums.
//
// Macros: EDGE (8 or 16), UNITS (2 EDGE UNITS is k rounded up to a multiple of 32), BLOCKS (for
// each multiprocessor), SOLVER; KEPT; SIGNED for rows with negative weights, TENSOR_CORES for 3xTF32.
#include "check.cuh"
#include "gram.cuh"
#include "solve.cuh"

using Shape = GramShape<EDGE, UNITS>;
constexpr int THREADS = Shape::kThreads;
constexpr int SIZE = Shape::kSize;
using Check = Checker<THREADS, SIZE>;

constexpr int AREA = larger(accumulate_floats<Shape>(), panel_floats(SIZE));
#if SOLVER == CONJUGATE_GRADIENT
constexpr int kChecked = 0;
#elif defined(KEPT)
constexpr int kChecked = larger(panel_floats(SIZE), Check::kFloats);
#else
constexpr int kChecked = Check::kFloats;
#endif
constexpr int kSharedFloats = Vectors<THREADS, SIZE>::kFloats + AREA +
                              larger(SystemSolver<THREADS, SIZE>::kFloats, kChecked);

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
primal(HalfSweep problem, const int64* rows, int64 n_rows) {
    SHARED_MEMORY(shared);
    const Vectors<THREADS, SIZE> v(shared);
    Shared<float> area = shared + Vectors<THREADS, SIZE>::kFloats;
    const SharedPanels lhs = {area, SIZE};
    // A row is loaded again for each step: while systems are solved there is no register to spare.
    const auto number = [&] { return row_number(rows, n_rows, read_block_number()); };
    {
        const Row row = row_of(problem, number(), v);
        Gram<EDGE, UNITS> gram;
        float rhs = 0.f;
        accumulate<Shape>(problem, row, row.first, int(row.count), gram, rhs, v.scratch,
                          area);
        gram.store(lhs);
        if (threadIdx.x < SIZE) *lhs.element(SIZE, threadIdx.x) = rhs;
        const float squares = block_sum<THREADS>(v.scratch[read_thread_number()], v.scratch);
        if (threadIdx.x == 0) *v.squares = problem.squared_loss ? squares : 0.f;
    }
    __syncthreads();
    Shared<float> rest = area + AREA;  // the copy, or the solver's, then the check's
    int condition;
    {
        const Row row(problem, number(), v.scale);
        finish_system(problem, row, lhs, v);
#ifdef KEPT
        for (int e = 4 * threadIdx.x; e < panel_floats(SIZE); e += 4 * THREADS)
            store4(rest + e, load4(area + e));
#endif
        condition = SystemSolver<THREADS, SIZE>::solve(problem, row, lhs, v, rest);
    }
    const Row row(problem, number(), v.scale);
#ifdef KEPT
    const SharedPanels system = {rest, SIZE};
    const bool kept = condition != kIll;
#else
    const SharedPanels system = lhs;  // other solvers leave it as it is
    const bool kept = SOLVER != CHOLESKY && condition != kIll;
#endif
    float loss = *v.squares, own;
    if (kept) {
        own = misfit_of(system, v.diagonal, v);
    } else {
        loss = Check::run(problem, row, row.first, int(row.count), v.z, rest, v.scratch);
        own = complete_misfit(problem, row, rest, v);
    }
    write_row(problem, row, condition, loss, own, kept ? v.diagonal : rest, lhs, v);
}
