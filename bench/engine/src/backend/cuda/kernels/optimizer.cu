// Optimizers, each in one pass. rates[0] is the learning rate, counters[0] + 1 the update's number: both on the device, so that graphs replay.
// Reference: PyTorch's SGD with dampening 0, and AdamW without AMSGrad.
#include "common.cuh"

extern "C" {

__global__ void sgd(
    float* parameter, const float* gradient, float* buffer, const float* rates, u64 n, float momentum, float weight_decay, int nesterov
) {
    const float rate = rates[0];
    EACH(i, n) {
        const float p = parameter[i], g = gradient[i] + weight_decay * p;
        if (buffer == nullptr) {
            parameter[i] = p - rate * g;
        } else {
            const float b = momentum * buffer[i] + g;
            buffer[i] = b;
            parameter[i] = p - rate * (nesterov ? g + momentum * b : b);
        }
    }
}

__global__ void adamw(
    float* parameter, const float* gradient, float* average, float* square, const float* rates, const int* counters, u64 n, double beta1, double beta2,
    float eps, float weight_decay
) {
    const double rate = rates[0];
    const int updates = counters[0] + 1;
    const float kept = (float)(1.0 - rate * weight_decay), fresh = (float)(1.0 - beta1), fresh_square = (float)(1.0 - beta2);
    const float step = (float)(rate / (1.0 - pow(beta1, updates))), root = (float)sqrt(1.0 - pow(beta2, updates));
    EACH(i, n) {
        const float g = gradient[i];
        const float m = average[i] + fresh * (g - average[i]);
        const float v = (float)beta2 * square[i] + fresh_square * (g * g);
        average[i] = m;
        square[i] = v;
        parameter[i] = parameter[i] * kept - step * (m / (sqrtf(v) / root + eps));
    }
}
}
