// Sums and maxima over a warp and over a block, in a fixed order.
#pragma once
#include "memory.cuh"

constexpr unsigned kFullWarp = 0xffffffffu;

// Sum over groups of WIDTH neighbouring lanes (a power of two); every lane gets it.
template <int WIDTH = 32>
__device__ __forceinline__ float group_sum(float value) {
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(kFullWarp, value, distance);
    return value;
}

// The same for several values, whose steps do not wait for one another.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void group_sums(float (&values)[COUNT]) {
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2)
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            values[i] += __shfl_xor_sync(kFullWarp, values[i], distance);
}

// Sum over a block of THREADS; every thread gets it. `scratch` has room for a float for each warp.
template <int THREADS>
__device__ __forceinline__ float block_sum(float value, Shared<float> scratch) {
    value = group_sum(value);
    const int thread = read_thread_number();
    __syncthreads();
    if (thread % 32 == 0) scratch[thread / 32] = value;
    __syncthreads();
    float total = 0.f;
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; ++warp) total += scratch[warp];
    return total;
}

template <int WIDTH = 32>
__device__ __forceinline__ float group_max(float value) {
#pragma unroll
    for (int distance = WIDTH / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, distance));
    return value;
}

// As block_sum.
template <int THREADS>
__device__ __forceinline__ float block_max(float value, Shared<float> scratch) {
    value = group_max(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
#pragma unroll
    for (int warp = 0; warp < THREADS / 32; ++warp) value = fmaxf(value, scratch[warp]);
    return value;
}
