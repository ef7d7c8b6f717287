// Softmax cross-entropy with its gradient, and counting errors. A block takes a row; sums over a sample's rows follow in an order of their own.
//
// `labels` below 0 are none; one that is no class makes the loss NaN, where the host stops. Reference: kernel.rs, SoftmaxCrossEntropy.
#include "common.cuh"

extern "C" {

// share[b] = scale / (labels of sample b, at least 1). A warp takes a sample.
__global__ void __launch_bounds__(1024) label_shares(const int* __restrict__ labels, float* __restrict__ share, u64 batch, u32 positions, float scale) {
    const u32 lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (u64 b = (u64)blockIdx.x * warps + threadIdx.x / WARP; b < batch; b += (u64)gridDim.x * warps) {
        u32 labelled = 0;
        for (u32 p = lane; p < positions; p += WARP) labelled += labels[b * positions + p] >= 0;
        labelled = warp_sum(labelled);
        if (lane == 0) share[b] = scale / (float)max(labelled, 1u);
    }
}

__global__ void __launch_bounds__(1024) row_loss(
    const value_t* __restrict__ logits, const int* __restrict__ labels, const float* __restrict__ share, float* __restrict__ row_losses,
    value_t* __restrict__ d_logits, u32 positions, u32 classes
) {
    __shared__ float shared[32];
    const u64 row = blockIdx.x;
    const value_t* own = logits + row * classes;
    value_t* to = d_logits != nullptr ? d_logits + row * classes : nullptr;
    const int label = labels[row];
    if (label < 0 || (u32)label >= classes) {
        const float nothing = label < 0 ? 0.0f : infinity() - infinity();
        if (threadIdx.x == 0) row_losses[row] = nothing;
        if (to != nullptr)
            for (u32 c = threadIdx.x; c < classes; c += blockDim.x) to[c] = nothing;
        return;
    }
    float largest = -infinity();
#pragma unroll 4
    for (u32 c = threadIdx.x; c < classes; c += blockDim.x) largest = fmaxf(largest, own[c]);
    largest = block_max(largest, shared);
    // The label is summed apart: as its probability nears 1, only the others say how much is missing.
    float others = 0.0f;
#pragma unroll 4
    for (u32 c = threadIdx.x; c < classes; c += blockDim.x) others += c == (u32)label ? 0.0f : expf(own[c] - largest);
    others = block_sum(others, shared);
    const float distance = own[label] - largest, mine = expf(distance), total = mine + others;
    if (threadIdx.x == 0) row_losses[row] = mine > others ? log1pf(others / mine) : logf(total) - distance;
    if (to != nullptr) {
        const float factor = share[row / positions] / total;
#pragma unroll 4
        for (u32 c = threadIdx.x; c < classes; c += blockDim.x) to[c] = c == (u32)label ? -others * factor : expf(own[c] - largest) * factor;
    }
}

// losses[b] = the mean over a sample's labels; loss[0] = scale·Σ losses. One block; a warp takes a sample.
__global__ void __launch_bounds__(1024) sample_losses(
    const float* __restrict__ row_losses, const int* __restrict__ labels, float* losses, float* __restrict__ loss, u64 batch, u32 positions, float scale
) {
    __shared__ double shared[32];
    const u32 lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (u64 b = threadIdx.x / WARP; b < batch; b += warps) {
        double total = 0.0;
        u32 labelled = 0;
        for (u32 p = lane; p < positions; p += WARP) {
            total += row_losses[b * positions + p];
            labelled += labels[b * positions + p] >= 0;
        }
        total = warp_sum(total);
        labelled = warp_sum(labelled);
        if (lane == 0) losses[b] = (float)(total / (double)max(labelled, 1u));
    }
    if (loss == nullptr) return;
    __syncthreads();
    double total = 0.0;
    for (u64 b = threadIdx.x; b < batch; b += blockDim.x) total += losses[b];
    total = block_sum(total, shared);
    if (threadIdx.x == 0) loss[0] = (float)(total * scale);
}

// Before `count_errors`.
__global__ void zero_errors(int* errors) {
    if (threadIdx.x < 2) errors[threadIdx.x] = 0;
}

// errors[0] += rows whose largest logit (the first of equal ones) is not their label, errors[1] += rows with a label. A block takes a row; whole numbers
// add up to the same in any order. Logits that are no numbers make an error.
__global__ void __launch_bounds__(1024) count_errors(const value_t* __restrict__ logits, const int* __restrict__ labels, int* __restrict__ errors, u32 classes) {
    const u64 row = blockIdx.x;
    const int label = labels[row];
    if (label < 0) return;
    bool right = (u32)label < classes;
    if (right) {
        const float own = logits[row * classes + label];
        for (u32 c = threadIdx.x; c < classes; c += blockDim.x) {
            const float other = logits[row * classes + c];
            right &= c < (u32)label ? own > other : own >= other;
        }
    }
    right = __syncthreads_and(right) != 0;
    if (threadIdx.x == 0) {
        atomicAdd(&errors[1], 1);
        if (!right) atomicAdd(&errors[0], 1);
    }
}
}
