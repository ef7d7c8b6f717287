// Pooling, NHWC. Backwards gather: an element of d_x adds up the windows that hold it, in row-major order, so that nothing is added atomically.
// Reference: kernel.rs; PyTorch's max_pool2d (NaN wins, the first of equal ones wins) and avg_pool2d.
#include "common.cuh"

struct Window {
    u32 h, w, c, out_h, out_w, kernel, stride, padding;
};

struct Range {
    u32 begin, end;
};

// Rows or columns of the image under window `at`.
__device__ __forceinline__ Range under(u32 at, const Window& window, u32 side) {
    const u32 start = at * window.stride;
    const u32 end = start + window.kernel > window.padding ? start + window.kernel - window.padding : 0;
    return {start > window.padding ? start - window.padding : 0, min(end, side)};
}

// Windows that hold row or column `at`.
__device__ __forceinline__ Range holding(u32 at, const Window& window, u32 outputs) {
    const u32 place = at + window.padding;
    const u32 begin = place < window.kernel ? 0 : (place - window.kernel) / window.stride + 1;
    return {begin, min(place / window.stride + 1, outputs)};
}

// Element i of an image [batch, h, w, c].
struct Place {
    u64 sample;
    u32 row, column, channel;
};

__device__ __forceinline__ Place place(u64 i, u32 h, u32 w, u32 c) {
    const Split channel = split(i, c), column = split(channel.quotient, w), row = split(column.quotient, h);
    return {row.quotient, row.rest, column.rest, channel.rest};
}

extern "C" {

__global__ void max_forward(const value_t* __restrict__ x, value_t* __restrict__ y, int* __restrict__ index, Window window, u64 batch) {
    EACH(i, batch * window.out_h * window.out_w * window.c) {
        const Place at = place(i, window.out_h, window.out_w, window.c);
        const Range rows = under(at.row, window, window.h), columns = under(at.column, window, window.w);
        const value_t* own = x + at.sample * window.h * window.w * window.c + at.channel;
        float largest = -infinity();
        u32 winner = rows.begin * window.w + columns.begin;
        for (u32 row = rows.begin; row < rows.end; ++row)
            for (u32 column = columns.begin; column < columns.end; ++column) {
                const u32 offset = row * window.w + column;
                const float value = own[(u64)offset * window.c];
                if (value > largest || value != value) {
                    largest = value;
                    winner = offset;
                }
            }
        y[i] = largest;
        index[i] = (int)winner;
    }
}

__global__ void max_backward(
    const value_t* __restrict__ d_y, const int* __restrict__ index, value_t* __restrict__ d_x, Window window, u64 batch, int accumulate
) {
    EACH(i, batch * window.h * window.w * window.c) {
        const Place at = place(i, window.h, window.w, window.c);
        const u32 offset = at.row * window.w + at.column;
        const Range rows = holding(at.row, window, window.out_h), columns = holding(at.column, window, window.out_w);
        float total = 0.0f;
        for (u32 row = rows.begin; row < rows.end; ++row)
            for (u32 column = columns.begin; column < columns.end; ++column) {
                const u64 of = ((at.sample * window.out_h + row) * window.out_w + column) * window.c + at.channel;
                // Both are read, so that neither waits for the other.
                const u32 winner = (u32)index[of];
                const float slope = d_y[of];
                total += winner == offset ? slope : 0.0f;
            }
        d_x[i] = accumulate ? d_x[i] + total : total;
    }
}

__global__ void average_forward(const value_t* __restrict__ x, value_t* __restrict__ y, Window window, u64 batch, int count_padding) {
    EACH(i, batch * window.out_h * window.out_w * window.c) {
        const Place at = place(i, window.out_h, window.out_w, window.c);
        const Range rows = under(at.row, window, window.h), columns = under(at.column, window, window.w);
        const value_t* own = x + at.sample * window.h * window.w * window.c + at.channel;
        float total = 0.0f;
        for (u32 row = rows.begin; row < rows.end; ++row)
            for (u32 column = columns.begin; column < columns.end; ++column) total += own[(u64)(row * window.w + column) * window.c];
        const u32 divisor = count_padding ? window.kernel * window.kernel : (rows.end - rows.begin) * (columns.end - columns.begin);
        y[i] = total * (1.0f / (float)divisor);
    }
}

__global__ void average_backward(
    const value_t* __restrict__ d_y, value_t* __restrict__ d_x, Window window, u64 batch, int count_padding, int accumulate
) {
    EACH(i, batch * window.h * window.w * window.c) {
        const Place at = place(i, window.h, window.w, window.c);
        const Range rows = holding(at.row, window, window.out_h), columns = holding(at.column, window, window.out_w);
        float total = 0.0f;
        for (u32 row = rows.begin; row < rows.end; ++row) {
            const Range a = under(row, window, window.h);
            for (u32 column = columns.begin; column < columns.end; ++column) {
                const Range b = under(column, window, window.w);
                const u32 divisor = count_padding ? window.kernel * window.kernel : (a.end - a.begin) * (b.end - b.begin);
                total += d_y[((at.sample * window.out_h + row) * window.out_w + column) * window.c + at.channel] * (1.0f / (float)divisor);
            }
        }
        d_x[i] = accumulate ? d_x[i] + total : total;
    }
}

// grid (channel tiles of 32, samples), block (32, 8).
__global__ void global_average_forward(const value_t* __restrict__ x, value_t* __restrict__ y, u64 spatial, u32 channels) {
    __shared__ float shared[8][33];
    const u32 channel = blockIdx.x * 32 + threadIdx.x;
    const value_t* own = x + blockIdx.y * spatial * channels + channel;
    float total = 0.0f;
    if (channel < channels)
#pragma unroll 4
        for (u64 s = threadIdx.y; s < spatial; s += blockDim.y) total += own[s * channels];
    shared[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y == 0 && channel < channels) {
        for (u32 r = 1; r < blockDim.y; ++r) total += shared[r][threadIdx.x];
        y[(u64)blockIdx.y * channels + channel] = total / (float)spatial;
    }
}

__global__ void global_average_backward(
    const value_t* __restrict__ d_y, value_t* __restrict__ d_x, u64 batch, u64 spatial, u32 channels, int accumulate
) {
    const float share = 1.0f / (float)spatial;
    EACH(i, batch * spatial * channels) {
        const Split at = split(i, channels);
        const u64 sample = split(at.quotient, (u32)spatial).quotient;
        const float value = d_y[sample * channels + at.rest] * share;
        d_x[i] = accumulate ? d_x[i] + value : value;
    }
}
}
