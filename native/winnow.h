// What the native kernels share: the packed matrix as it lies in a file, the activations in the form a kernel wants,
// and the table of functions that every instruction set fills.
//
// A file compiled for an instruction set (avx2_*.cpp, avx512_*.cpp) must keep everything it defines static and must not
// instantiate templates of the standard library: the linker keeps one copy of an inline function, and it could be the
// one that an older processor cannot run.
#pragma once
#include <cstddef>
#include <cstdint>

namespace winnow {

enum Values : int { kF32 = 0, kF16 = 1, kBF16 = 2, kI8 = 3, kI4 = 4 };
enum Type : int { kFloat = 0, kBfloat = 1, kHalf = 2, kCodes = 3 };  // kCodes: int8, for expand only

constexpr int64_t kLane = 64;   // activations are padded with zeros to a multiple of this many columns
constexpr int64_t kLongest = 1 << 17;  // columns of int8 whose sum of products with a digit fits 32 bits
constexpr int64_t kBatch = 16;  // rows of x that one call of a row kernel handles at most

// A packed matrix [rows, cols]. Nothing is aligned, and nothing may be read beyond data + data_bytes.
struct Matrix {
  int64_t rows, cols;
  int values;             // Values
  int block;              // consecutive columns that one mask bit stands for: 1, or 4 (int8 only; cols % 4 == 0)
  int64_t group;          // columns that share a scale, counted from column 0 (int8: cols); floats: cols
  const uint8_t* mask;    // [rows, stride]: bit c / block, lowest bit first, bits beyond the last column 0; null: all kept
  int64_t stride;         // bytes of a row of the mask
  const uint8_t* data;    // kept values row by row; int4 two to a byte, low nibble first, each row padded to a byte
  int64_t data_bytes;
  const uint32_t* starts; // [rows + 1]: byte at which a row begins in data
  const uint16_t* scales; // float16 [rows, ceil(cols / group)]; null for floats
};

inline int64_t groups_of(const Matrix& w) { return (w.cols + w.group - 1) / w.group; }

// Columns of int4 over which products with three digits may be summed in 32 bits before they are scaled: a multiple of
// kLane that divides a group, or 0 where no multiple does.
inline int64_t step_of(const Matrix& w) {
  if (w.group >= w.cols) return 8 * kLane;
  for (int64_t step = 8 * kLane; step >= kLane; step /= 2)
    if (w.group % step == 0) return step;
  return 0;
}

enum Form : int { kFormFloat, kFormBfloat, kFormDigits, kFormPieces };

// Up to kBatch rows of x. Columns from `cols` to `width` are zero. Every array is 64-byte aligned, every row of it too.
struct Acts {
  Form form;
  int64_t batch;
  int64_t width;         // cols rounded up to kLane
  float* f;              // kFormFloat: [batch, width]
  uint16_t* h;           // kFormBfloat: [batch, width], bfloat16
  // kFormDigits: x[b, c] = scale[b] * sum_i digit[b, i, c] * 256^(digits - 1 - i), signed digits, highest first.
  // Three digits are a 24-bit fixed point of the row, one digit is dynamic int8 quantization.
  int8_t* d;             // [batch, digits, width]
  int digits;            // 1 or 3
  // kFormPieces: the same from 16-bit digits of base 4096 in -2048 .. 2047, `digits` of them, 1 (int8 quantization) or 2.
  int16_t* p;            // [batch, digits, width]
  float* scale;          // [batch]
  // Sums of digits, for kernels that add an offset to the weights. int8: [batch, digits], over all columns. int4, where
  // step_of(w) is not 0: [batch, steps, 16], -8 * sum_i digit[i] * 256^(digits - 1 - i) over the columns of a step that
  // fall into double word 0 .. 15 of their 64, modulo 2^32.
  int32_t* sums;
};

// out[b * ldo + r - r0] = sum_c w[r, c] * x[b, c] for r0 <= r < r1, in float.
using Rows = void (*)(const Matrix& w, const Acts& x, int64_t r0, int64_t r1, float* out, int64_t ldo);
// Rows [r0, r1) dense and dequantized (kCodes: integer codes) to out, `ldo` elements a row.
using Expand = void (*)(const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type);
// y[r, j] = sum_c w[r, c] * x[c, j] for r0 <= r < r1 and 0 <= j < n: x [cols, n] and y [rows, n] are float and
// feature-major, `ldx` and `ldy` elements a row.
using Times = void (*)(const Matrix& w, int64_t r0, int64_t r1, const float* x, int64_t ldx, int64_t n, float* y,
                       int64_t ldy);

// Fills the arrays of `out`, whose form, batch, width and digits are set, from out.batch rows of x.
using Prepare = void (*)(const Matrix& w, const void* x, int64_t ldx, Type type, Acts& out);

// Rows of x of one digit side by side, for `many`: the four columns of block i of up to kBatch rows of x to
// out[i * ld .. i * ld + 64), four bytes a row, each plus 128.
using Interleave = void (*)(const Acts& x, uint8_t* out, int64_t ld);
// int8 in 1 x 4 blocks times up to kMany rows of x, interleaved, kBatch rows every 64 bytes: out as for Rows.
constexpr int64_t kMany = 128;
using Many = void (*)(const Matrix& w, const uint8_t* x, int64_t ldx, const float* x_scales, int64_t batch, int64_t r0,
                      int64_t r1, float* out, int64_t ldo);

struct Kernels {
  const char* name;
  // The form of activations that `rows` wants for these values.
  Form (*form)(const Matrix& w, Type x, bool int8_activations);
  Prepare prepare;
  Rows rows;
  Expand expand;
  Times times;
  Interleave interleave;  // null where `rows` is all there is, as is `many`
  Many many;
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();    // x86 only, as is the next
const Kernels* avx512_kernels();  // VBMI2, VNNI, BF16 on top of F, BW, VL, DQ

// y[b, r] = sum_c w[r, c] * x[b, c] + bias[r]; x [batch, cols], y [batch, rows] of `type`, ldx / ldy elements a row.
void linear(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, Type type, int64_t batch, const float* bias,
            void* y, int64_t ldy, bool int8_activations, int threads);
void expand(const Kernels& k, const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type, int threads);
// y = w x (+ bias[r] in every column), feature-major float.
void times(const Kernels& k, const Matrix& w, const float* x, int64_t ldx, int64_t n, const float* bias, float* y,
           int64_t ldy, int threads);
// The same as `linear` through the feature-major kernels, with float sums.
void linear_many(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, Type type, int64_t batch,
                 const float* bias, void* y, int64_t ldy, int threads);

// A convolution of one group, (height, width) each; zeros pad the images.
struct Images {
  int64_t images, channels, height, width, out_height, out_width;
  int64_t kernel[2], stride[2], padding[2], dilation[2];
};

// y [images, rows, out_height, out_width] from x [images, channels, height, width]; w [rows, channels * kernel].
void convolve(const Kernels& k, const Matrix& w, const float* x, const Images& images, const float* bias, float* y,
              int threads);
// Fills starts[rows + 1]; false where a row has index bits beyond its last column or the values do not fill data_bytes.
bool find_starts(const Matrix& w, uint32_t* starts);

// Weights that are kept, each of which is multiplied once for every row of x.
inline int64_t kept_in(const Matrix& w) {
  return w.values == kF32 ? w.data_bytes / 4 : w.values == kI8 ? w.data_bytes : w.values == kI4 ? 2 * w.data_bytes : w.data_bytes / 2;
}

// How many of `threads` are worth waking for so many multiplications: one for a small matrix.
int threads_for(int threads, int64_t work);
// Runs task(context, i) for 0 <= i < tasks on up to `threads` threads, the caller's among them.
void parallel(int threads, int64_t tasks, void (*task)(void* context, int64_t i), void* context);
// Hands over GOMP_parallel of the OpenMP runtime that torch uses, so that both share one pool of threads.
void use_openmp(void* gomp_parallel);

}  // namespace winnow
