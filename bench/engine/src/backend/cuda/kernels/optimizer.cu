// Optimizers, each in one pass. rates[0] is the learning rate, counters[0] + 1 the update's number: both on the device, so that graphs replay.
// Reference: PyTorch's SGD with dampening 0, and AdamW without AMSGrad.
#include "common.cuh"

extern "C" {

__global__ void sgd(
    float* __restrict__ parameter, const float* __restrict__ gradient, float* __restrict__ buffer, const float* __restrict__ rates, u64 n, float momentum,
    float weight_decay, int nesterov
) {
    const float rate = rates[0];
    if (buffer == nullptr) {
        each(n, [&](u64 i) {
            const float p = parameter[i];
            parameter[i] = p - rate * (gradient[i] + weight_decay * p);
        });
        return;
    }
    each(n, [&](u64 i) {
        const float p = parameter[i], g = gradient[i] + weight_decay * p, b = momentum * buffer[i] + g;
        buffer[i] = b;
        parameter[i] = p - rate * (nesterov ? g + momentum * b : b);
    });
}

// What is equal for all elements is made once a block, since f64 is slow on many devices.
__global__ void adamw(
    float* __restrict__ parameter, const float* __restrict__ gradient, float* __restrict__ average, float* __restrict__ square, const float* __restrict__ rates,
    const int* __restrict__ counters, u64 n, double beta1, double beta2, float eps, float weight_decay
) {
    __shared__ float factors[3];
    if (threadIdx.x == 0) {
        const double rate = rates[0], updates = (double)(counters[0] + 1);
        factors[0] = (float)(1.0 - rate * (double)weight_decay);
        factors[1] = (float)(rate / (1.0 - pow(beta1, updates)));
        factors[2] = (float)sqrt(1.0 - pow(beta2, updates));
    }
    __syncthreads();
    const float kept = factors[0], step = factors[1], root = factors[2];
    const float fresh = (float)(1.0 - beta1), fresh_square = (float)(1.0 - beta2), old_square = (float)beta2;
    each(n, [&](u64 i) {
        const float g = gradient[i], before = average[i];
        const float m = before + fresh * (g - before), v = old_square * square[i] + fresh_square * (g * g);
        average[i] = m;
        square[i] = v;
        parameter[i] = parameter[i] * kept - step * (m / (sqrtf(v) / root + eps));
    });
}
}
