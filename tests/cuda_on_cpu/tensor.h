// What the tensor cores compute, and their number formats.
#pragma once

namespace cuda_on_cpu {

// The 10 bits of fraction that a tensor core reads of a float; it ignores the other 13.
inline double tf32_value(unsigned bits) {
    bits &= ~0x1fffu;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline float round_toward_zero(double exact) {
    const float nearest = static_cast<float>(exact);
    return std::fabs(double(nearest)) > std::fabs(exact) ? std::nextafterf(nearest, 0.0f) : nearest;
}

struct TensorOperands {
    unsigned a[4], b[2];
};

}  // namespace cuda_on_cpu

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32: c (16 x 8) += a (16 x 8) b (8 x 8), spread
// over the lanes as the PTX manual draws it, with group = lane / 4 and t = lane % 4:
//     a: (group, t), (group + 8, t), (group, t + 4), (group + 8, t + 4)
//     b: (t, group), (t + 4, group)
//     c: (group, 2 t), (group, 2 t + 1), (group + 8, 2 t), (group + 8, 2 t + 1)
inline void mma_tf32_16x8x8(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                            cuda_on_cpu::Place place = cuda_on_cpu::Place::here()) {
    using namespace cuda_on_cpu;
    const Round& round = exchange("mma_tf32_16x8x8", FULL_MASK,
                                  TensorOperands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, false,
                                  place);
    const unsigned lane = block.current->lane, group = lane / 4, t = lane % 4;
    double sum[4] = {c[0], c[1], c[2], c[3]};
    for (unsigned k = 0; k < 8; ++k) {
        const auto row = round.slots[4 * group + k % 4].as<TensorOperands>();
        const auto left = round.slots[4 * (2 * t) + k % 4].as<TensorOperands>();
        const auto right = round.slots[4 * (2 * t + 1) + k % 4].as<TensorOperands>();
        const double top = tf32_value(row.a[k / 4 * 2]), bottom = tf32_value(row.a[k / 4 * 2 + 1]);
        sum[0] += top * tf32_value(left.b[k / 4]);
        sum[1] += top * tf32_value(right.b[k / 4]);
        sum[2] += bottom * tf32_value(left.b[k / 4]);
        sum[3] += bottom * tf32_value(right.b[k / 4]);
    }
    for (int i = 0; i < 4; ++i) c[i] = round_toward_zero(sum[i]);
}

// IEEE half precision, exactly.
inline float half_to_float(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) {
        const float magnitude = fraction * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    const unsigned bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
