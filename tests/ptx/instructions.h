// The instructions, by the names that decode.py gives them.
#pragma once
#include "groups.h"
#include "memory.h"

namespace {

// Lane by lane: d = f(a, b, ...)

template <class D, class A, class F>
inline void map1(Machine& m, const Instruction& i, F f) {
    const A* a = m.reg<A>(i.operands[1]);
    set(m, m.reg<D>(i.operands[0]), [=](int lane) { return D(f(a[lane])); });
}
template <class D, class A, class F>
inline void map2(Machine& m, const Instruction& i, F f) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    set(m, m.reg<D>(i.operands[0]), [=](int lane) { return D(f(a[lane], b[lane])); });
}
template <class D, class A, class F>
inline void map3(Machine& m, const Instruction& i, F f) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    const D* c = m.reg<D>(i.operands[3]);
    set(m, m.reg<D>(i.operands[0]), [=](int lane) { return D(f(a[lane], b[lane], c[lane])); });
}
template <class A, class F>  // the second operand is a number of bits
inline void shift(Machine& m, const Instruction& i, F f) {
    const A* a = m.reg<A>(i.operands[1]);
    const u32* b = m.reg<u32>(i.operands[2]);
    constexpr u32 most = 8 * sizeof(A);
    set(m, m.reg<A>(i.operands[0]), [=](int lane) { return f(a[lane], std::min(b[lane], most)); });
}
template <class A, class F>
inline void compare(Machine& m, const Instruction& i, F f) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    check_written(m, a);
    check_written(m, b);
    u32 found = 0;
    for (int lane = 0; lane < LANES; ++lane) found |= u32(f(a[lane], b[lane])) << lane;
    set_pred(m, i.operands[0], found);
}
template <class A>
inline void select(Machine& m, const Instruction& i) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    const u32 which = m.pred(i.operands[3]);
    set(m, m.reg<A>(i.operands[0]),
        [=](int lane) { return which >> lane & 1 ? a[lane] : b[lane]; });
}

// Numbers

// What approximating instructions give: one unit in the last place more, less, or neither.
inline float approximate(float exact, u32 operands) {
    if (!std::isfinite(exact) || exact == 0) return exact;
    return float_of(bits_of(exact) + (operands * 2654435761u >> 16) % 3 - 1);
}
inline float flushed(float value) {
    return std::fabs(value) < std::numeric_limits<float>::min() ? std::copysign(0.f, value) : value;
}
inline double flushed(double value) { return value; }
inline float half_to_float(u16 half) {
    const u32 sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    if (exponent == 0) {
        const float magnitude = float(fraction) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return float_of(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13);
}
template <class A>
inline A bit_field_insert(A bits, A into, u32 place, u32 length) {
    constexpr u32 most = 8 * sizeof(A);
    if (place >= most) return into;
    const A mask = (length >= most ? ~A(0) : (A(1) << length) - 1) << place;
    return (into & ~mask) | (bits << place & mask);
}
template <class A>
inline void insert(Machine& m, const Instruction& i) {
    const A *a = m.reg<A>(i.operands[1]), *b = m.reg<A>(i.operands[2]);
    const u32 *c = m.reg<u32>(i.operands[3]), *d = m.reg<u32>(i.operands[4]);
    set(m, m.reg<A>(i.operands[0]), [=](int lane) {
        return bit_field_insert(a[lane], b[lane], c[lane] & 255, d[lane] & 255);
    });
}
template <class A>
inline A divide(A a, A b) {
    if (b == 0) return A(-1);
    return std::is_signed_v<A> && b == A(-1) ? A(0 - std::make_unsigned_t<A>(a)) : A(a / b);
}
template <class A>
inline A larger(A a, A b) {
    if (a != a || b != b) return a != a ? b : a;
    return a > b || (a == b && !std::signbit(double(a))) ? a : b;  // 0 is larger than -0
}
template <class A>
inline A smaller(A a, A b) {
    if (a != a || b != b) return a != a ? b : a;
    return a < b || (a == b && std::signbit(double(a))) ? a : b;
}
inline s32 to_s32(float value) {
    if (value != value) return 0;
    if (value >= 0x1p31f) return std::numeric_limits<s32>::max();
    return value < -0x1p31f ? std::numeric_limits<s32>::min() : s32(value);
}
inline u32 reversed(u32 bits) {
    u32 out = 0;
    for (int i = 0; i < 32; ++i) out |= (bits >> i & 1) << (31 - i);
    return out;
}

// The table

#define MAP1(name, d, a, expression) \
    {name, [](Machine& m, const Instruction& i) { map1<d, a>(m, i, [](a x) { return expression; }); }}
#define MAP2(name, d, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         map2<d, a>(m, i, [](a x, a y) { return expression; }); }}
#define MAP3(name, d, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         map3<d, a>(m, i, [](a x, a y, d z) { return expression; }); }}
#define EXTREME(name, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         check_written(m, m.reg<a>(i.operands[1])); \
         check_written(m, m.reg<a>(i.operands[2])); \
         map2<a, a>(m, i, [](a x, a y) { return expression; }); }}
#define SHIFT(name, a, expression)                \
    {name, [](Machine& m, const Instruction& i) { \
         shift<a>(m, i, [](a x, u32 n) { return a(expression); }); }}
#define COMPARE(name, a, expression)              \
    {name, [](Machine& m, const Instruction& i) { \
         compare<a>(m, i, [](a x, a y) { return expression; }); }}
#define PRED(name, expression)                    \
    {name, [](Machine& m, const Instruction& i) { \
         [[maybe_unused]] const u32 x = m.pred(i.operands[1]), y = m.pred(i.operands[2]); \
         set_pred(m, i.operands[0], expression); }}
#define INTEGERS(suffix, a)                                                                      \
    EXTREME("min." suffix, a, smaller(x, y)), EXTREME("max." suffix, a, larger(x, y)),           \
    MAP2("div." suffix, a, a, divide(x, y)),                                                     \
    MAP2("rem." suffix, a, a, a(x - divide(x, y) * y)),                                          \
    COMPARE("setp.lt." suffix, a, x < y), COMPARE("setp.le." suffix, a, x <= y),                 \
    COMPARE("setp.gt." suffix, a, x > y), COMPARE("setp.ge." suffix, a, x >= y),                 \
    COMPARE("setp.eq." suffix, a, x == y), COMPARE("setp.ne." suffix, a, x != y)
#define BITS(bits, a, s)                                                                         \
    MAP2("add." bits, a, a, a(x + y)), MAP2("sub." bits, a, a, a(x - y)),                        \
    MAP2("mul.lo." bits, a, a, a(x * y)), MAP3("mad.lo." bits, a, a, a(x * y + z)),              \
    MAP1("mov." bits, a, a, x), MAP2("and.b" bits, a, a, x & y), MAP2("or.b" bits, a, a, x | y), \
    MAP2("xor.b" bits, a, a, x ^ y), MAP1("not.b" bits, a, a, a(~x)),                            \
    MAP1("neg.s" bits, a, a, a(0 - x)), {"selp." bits, select<a>},                               \
    SHIFT("shl." bits, a, n >= 8 * sizeof(a) ? 0 : x << n),                                      \
    SHIFT("shr.u" bits, a, n >= 8 * sizeof(a) ? 0 : x >> n),                                     \
    SHIFT("shr.s" bits, s, x >> std::min(n, u32(8 * sizeof(s) - 1))),                            \
    COMPARE("setp.eq.b" bits, a, x == y), COMPARE("setp.ne.b" bits, a, x != y),                  \
    {"ld.global." bits, load<true, a>}, {"st.global." bits, store<true, a>},                     \
    {"ld.param." bits, load_parameter<a>}
#define FLOATS(suffix, a)                                                                        \
    MAP2("add." suffix, a, a, x + y), MAP2("sub." suffix, a, a, x - y),                          \
    MAP2("mul." suffix, a, a, x * y), MAP3("fma.rn." suffix, a, a, std::fma(x, y, z)),           \
    MAP1("neg." suffix, a, a, -flushed(x)), MAP1("abs." suffix, a, a, std::fabs(flushed(x))),    \
    EXTREME("min." suffix, a, smaller(flushed(x), flushed(y))),                                  \
    EXTREME("max." suffix, a, larger(flushed(x), flushed(y))),                                   \
    MAP2("div.rn." suffix, a, a, x / y), MAP1("sqrt.rn." suffix, a, a, std::sqrt(x)),            \
    COMPARE("setp.lt." suffix, a, x < y), COMPARE("setp.le." suffix, a, x <= y),                 \
    COMPARE("setp.gt." suffix, a, x > y), COMPARE("setp.ge." suffix, a, x >= y),                 \
    COMPARE("setp.eq." suffix, a, x == y), COMPARE("setp.ne." suffix, a, x < y || x > y),        \
    COMPARE("setp.ltu." suffix, a, !(x >= y)), COMPARE("setp.leu." suffix, a, !(x > y)),         \
    COMPARE("setp.gtu." suffix, a, !(x <= y)), COMPARE("setp.geu." suffix, a, !(x < y)),         \
    COMPARE("setp.equ." suffix, a, !(x < y || x > y)), COMPARE("setp.neu." suffix, a, x != y),   \
    COMPARE("setp.num." suffix, a, x == x && y == y),                                            \
    COMPARE("setp.nan." suffix, a, x != x || y != y)

struct Entry {
    const char* name;
    void (*handler)(Machine&, const Instruction&);
};

const Entry entries[] = {
    BITS("16", u16, s16), BITS("32", u32, s32), BITS("64", u64, s64),
    INTEGERS("s16", s16), INTEGERS("u16", u16), INTEGERS("s32", s32), INTEGERS("u32", u32),
    INTEGERS("s64", s64), INTEGERS("u64", u64),
    FLOATS("ftz.f32", float), FLOATS("f64", double),
    {"ld.shared.32", load<false, u32>}, {"st.shared.32", store<false, u32>},
    {"ld.shared.32.as.s64", load<false, s32, s64>}, {"ld.global.32.as.s64", load<true, s32, s64>},
    {"ld.shared.32.as.u64", load<false, u32, u64>}, {"ld.global.32.as.u64", load<true, u32, u64>},
    {"ld.param.32.as.s64", load_parameter<s32, s64>},
    {"ld.param.32.as.u64", load_parameter<u32, u64>},
    {"ld.shared.64", load<false, u64>}, {"st.shared.64", store<false, u64>},
    MAP2("mul.hi.s32", s32, s32, s32(s64(x) * y >> 32)),
    MAP2("mul.hi.u32", u32, u32, u32(u64(x) * y >> 32)),
    MAP2("mul.wide.s32", s64, s32, s64(x) * y), MAP2("mul.wide.u32", u64, u32, u64(x) * y),
    MAP2("mul.wide.s16", s32, s16, s32(x) * y), MAP2("mul.wide.u16", u32, u16, u32(x) * y),
    MAP2("div.approx.ftz.f32", float, float, approximate(x / y, bits_of(x) ^ bits_of(y))),
    MAP2("div.full.ftz.f32", float, float, approximate(x / y, bits_of(x) ^ bits_of(y))),
    MAP1("rsqrt.approx.ftz.f32", float, float,
         approximate(float(1 / std::sqrt(double(x))), bits_of(x))),
    MAP1("sqrt.approx.ftz.f32", float, float, approximate(std::sqrt(x), bits_of(x))),
    MAP1("cvt.s64.s32", s64, s32, x), MAP1("cvt.u64.u32", u64, u32, x),
    MAP1("cvt.u32.u64", u32, u64, u32(x)), MAP1("cvt.u32.u16", u32, u16, x),
    MAP1("cvt.s32.s16", s32, s16, x), MAP1("cvt.u16.u32", u16, u32, u16(x)),
    MAP1("cvt.rn.f32.s32", float, s32, float(x)), MAP1("cvt.rn.f32.u32", float, u32, float(x)),
    MAP1("cvt.rn.f64.s32", double, s32, x), MAP1("cvt.rn.f32.s64", float, s64, float(x)),
    MAP1("cvt.rn.f32.u64", float, u64, float(x)),
    MAP1("cvt.rzi.ftz.s32.f32", s32, float, to_s32(x)), MAP1("cvt.f32.f16", float, u16, half_to_float(x)),
    MAP1("cvt.ftz.f64.f32", double, float, x), MAP1("cvt.rn.ftz.f32.f64", float, double, float(x)),
    MAP1("popc.b32", u32, u32, u32(__builtin_popcount(x))), MAP1("brev.b32", u32, u32, reversed(x)),
    MAP1("clz.b32", u32, u32, x ? u32(__builtin_clz(x)) : 32),
    MAP1("bfind.shiftamt.u32", u32, u32, x ? u32(__builtin_clz(x)) : ~0u),
    {"bfi.b32", insert<u32>}, {"bfi.b64", insert<u64>},
    {"pack.64", [](Machine& m, const Instruction& i) {
         map2<u64, u32>(m, i, [](u64 x, u64 y) { return x | y << 32; }); }},
    {"unpack.64", [](Machine& m, const Instruction& i) {
         const u64* a = m.reg<u64>(i.operands[2]);
         set(m, m.reg<u32>(i.operands[0]), [=](int lane) { return u32(a[lane]); });
         set(m, m.reg<u32>(i.operands[1]), [=](int lane) { return u32(a[lane] >> 32); }); }},
    PRED("mov.pred", x), PRED("not.pred", ~x), PRED("and.pred", x & y), PRED("or.pred", x | y),
    PRED("xor.pred", x ^ y),
    {"bra", branch}, {"ret", leave}, {"bar.warp.sync", sync_warp},
    {"shfl.sync.bfly.b32", shuffle<BFLY>}, {"shfl.sync.down.b32", shuffle<DOWN>},
    {"shfl.sync.up.b32", shuffle<UP>}, {"shfl.sync.idx.b32", shuffle<IDX>},
    {"vote.sync.any.pred", vote<false>}, {"vote.sync.all.pred", vote<true>},
    {"vote.sync.ballot.b32", vote_ballot},
    {"mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", multiply_tiles},
    {"bar.sync", sync_block}, {"bar.red.popc.u32", sync_block}, {"bar.red.or.pred", sync_block},
    {"bar.red.and.pred", sync_block},
};
constexpr size_t ENTRY_COUNT = sizeof entries / sizeof *entries;

}  // namespace
