// Rows in their primal form, one block of EDGE * EDGE threads for each row.
//
//     (shift I + base + W^T sign W) z = b0 + W^T tau
//
// The entries stream through shared memory while the lower triangle of the Gram grows in
// registers (gram.cuh). It is stored to shared memory once, solved there (solve.cuh) and never
// reaches global memory. A second pass over the entries checks the solution (check.cuh).
//
// Shared memory (primal_floats in launch.py, kSharedFloats here): vectors; one area that serves the
// stages and the panels of the system in turn; another that serves what the solver needs besides
// and the check's sums.
//
// Macros: EDGE (8 or 16), UNITS (2 EDGE UNITS is k rounded up to a multiple of 32), BLOCKS (for
// each multiprocessor), SOLVER; SIGNED for rows with negative weights, TENSOR_CORES for 3xTF32.
#include "check.cuh"
#include "gram.cuh"
#include "solve.cuh"

using Shape = GramShape<EDGE, UNITS>;
constexpr int THREADS = Shape::kThreads;
constexpr int SIZE = Shape::kSize;
using Check = Checker<THREADS, SIZE>;

__host__ __device__ constexpr int larger(int a, int b) {
    return a > b ? a : b;
}
constexpr int AREA = larger(accumulate_floats<Shape>(), panel_floats(SIZE));
constexpr int kSharedFloats = Vectors<THREADS, SIZE>::kFloats + AREA +
                              larger(SystemSolver<THREADS, SIZE>::kFloats, Check::kFloats);

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
        accumulate<Shape>(problem, row, row.first, int(row.count), gram, rhs, area);
        gram.store(lhs);
        if (threadIdx.x < SIZE) *lhs.element(SIZE, threadIdx.x) = rhs;
    }
    __syncthreads();
    Shared<float> rest = area + AREA;  // the solver's, then the check's
    int condition;
    {
        const Row row(problem, number(), v.scale);
        finish_system(problem, row, lhs, v);
        condition = SystemSolver<THREADS, SIZE>::solve(problem, row, lhs, v, rest);
    }
    const Row row(problem, number(), v.scale);
    const float loss = Check::run(problem, row, row.first, int(row.count), v.z, rest, v.scratch);
    write_row(problem, row, condition, loss, rest, lhs, v);
}
