// Softmax cross-entropy with its gradient, and counting errors. A block takes a row; sums over a sample's rows follow in order.
//
// `labels` below 0 are none. Reference: kernel.rs, SoftmaxCrossEntropy.
#include "common.cuh"

extern "C" {

// share[b] = scale / (labels of sample b, at least 1).
__global__ void label_shares(const int* labels, float* share, u64 batch, u32 positions, float scale) {
    EACH(b, batch) {
        u32 labelled = 0;
        for (u32 p = 0; p < positions; ++p) labelled += labels[b * positions + p] >= 0;
        share[b] = scale / (float)max(labelled, 1u);
    }
}

__global__ void row_loss(
    const float* logits, const int* labels, const float* share, float* row_losses, float* d_logits, u32 positions, u32 classes
) {
    __shared__ float shared[32];
    const u64 row = blockIdx.x;
    const float* own = logits + row * classes;
    float* to = d_logits ? d_logits + row * classes : nullptr;
    const int label = labels[row];
    if (label < 0) {
        if (threadIdx.x == 0) row_losses[row] = 0.0f;
        if (to)
            for (u32 c = threadIdx.x; c < classes; c += blockDim.x) to[c] = 0.0f;
        return;
    }
    float largest = -INFINITY;
    for (u32 c = threadIdx.x; c < classes; c += blockDim.x) largest = fmaxf(largest, own[c]);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, offset));
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = (blockDim.x + WARP - 1) / WARP;
    if (lane == 0) shared[warp] = largest;
    __syncthreads();
    largest = lane < warps ? shared[lane] : -INFINITY;
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, offset));
    float total = 0.0f;
    for (u32 c = threadIdx.x; c < classes; c += blockDim.x) total += expf(own[c] - largest);
    total = block_sum(total, shared);
    if (threadIdx.x == 0) row_losses[row] = logf(total) - (own[label] - largest);
    if (to) {
        const float factor = share[row / positions];
        for (u32 c = threadIdx.x; c < classes; c += blockDim.x)
            to[c] = factor * (expf(own[c] - largest) / total - (c == (u32)label ? 1.0f : 0.0f));
    }
}

// losses[b] = the mean over a sample's labels; loss[0] = scale·Σ losses, in order. One block.
__global__ void sample_losses(const float* row_losses, const int* labels, float* losses, float* loss, u64 batch, u32 positions, float scale) {
    for (u64 b = threadIdx.x; b < batch; b += blockDim.x) {
        double total = 0.0;
        u32 labelled = 0;
        for (u32 p = 0; p < positions; ++p) {
            total += row_losses[b * positions + p];
            labelled += labels[b * positions + p] >= 0;
        }
        losses[b] = (float)(total / (double)max(labelled, 1u));
    }
    __syncthreads();
    if (threadIdx.x == 0 && loss != nullptr) {
        double total = 0.0;
        for (u64 b = 0; b < batch; ++b) total += losses[b];
        loss[0] = (float)(total * scale);
    }
}

// errors[0] rows whose largest logit (the first of equal ones) is not their label, errors[1] rows with a label; both start at 0. A block a row.
__global__ void count_errors(const float* logits, const int* labels, int* errors, u32 classes) {
    __shared__ float values[256];
    __shared__ u32 places[256];
    const u64 row = blockIdx.x;
    const int label = labels[row];
    if (label < 0) return;
    float largest = -INFINITY;
    u32 place = classes;
    for (u32 c = threadIdx.x; c < classes; c += blockDim.x) {
        const float value = logits[row * classes + c];
        if (value > largest || place == classes) {
            largest = value;
            place = c;
        }
    }
    values[threadIdx.x] = largest;
    places[threadIdx.x] = place;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) {
            const float other = values[threadIdx.x + half];
            const u32 other_place = places[threadIdx.x + half];
            if (other_place < classes && (other > values[threadIdx.x] || (other == values[threadIdx.x] && other_place < places[threadIdx.x]) || places[threadIdx.x] == classes)) {
                values[threadIdx.x] = other;
                places[threadIdx.x] = other_place;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        atomicAdd(&errors[1], 1);
        if (places[0] != (u32)label) atomicAdd(&errors[0], 1);
    }
}
}
