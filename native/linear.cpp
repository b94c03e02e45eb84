// The three products: activations are prepared once, then bands of rows are handed to the threads.
#include <algorithm>
#include <bitset>
#include <cstring>
#include <memory>
#include <vector>

#include "numbers.h"
#include "winnow.h"

namespace winnow {
namespace {

constexpr int64_t kBandBytes = 128 << 10;  // packed bytes of a band: stays in the second-level cache for more chunks of x
constexpr int64_t kBandRows = 252;
constexpr int64_t kTileRows = 12;  // row kernels take two, three or four rows at a time

struct Free {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};
using Bytes = std::unique_ptr<char, Free>;

Bytes aligned(int64_t bytes) {
  return Bytes(static_cast<char*>(::operator new(size_t(std::max<int64_t>(bytes, 64)), std::align_val_t(64))));
}

int64_t band_rows(const Matrix& w, int threads, int64_t rows) {
  const int64_t row_bytes = (w.mask ? w.stride : 0) + w.data_bytes / std::max<int64_t>(w.rows, 1) + 1;
  const int64_t even = (rows + 4 * threads - 1) / (4 * threads);  // at least four bands a thread: they rarely end together
  const int64_t tiles = (std::min(kBandBytes / row_bytes, even) + kTileRows - 1) / kTileRows;
  return std::clamp<int64_t>(tiles * kTileRows, kTileRows, kBandRows);
}

template <typename Body>
void for_bands(int threads, int64_t rows, int64_t step, Body body) {
  struct Context {
    Body& body;
    int64_t rows, step;
  } context{body, rows, step};
  parallel(
      threads, (rows + step - 1) / step,
      [](void* p, int64_t i) {
        Context& c = *static_cast<Context*>(p);
        c.body(i * c.step, std::min(c.rows, (i + 1) * c.step));
      },
      &context);
}

template <typename Item, typename Convert>
void store_row(const float* from, int64_t count, const float* bias, Item* to, Convert convert) {
  if (bias)
    for (int64_t i = 0; i < count; ++i) to[i] = convert(from[i] + bias[i]);
  else
    for (int64_t i = 0; i < count; ++i) to[i] = convert(from[i]);
}

// out[b * (r1 - r0) + r - r0] (+ bias[r]) to y[b0 + b, r] for 0 <= b < batch.
void store_rows(const float* out, int64_t r0, int64_t r1, int64_t b0, int64_t batch, const float* bias, void* y,
                int64_t ldy, Type type) {
  const int64_t count = r1 - r0;
  if (bias) bias += r0;
  for (int64_t b = 0; b < batch; ++b, out += count) {
    const int64_t at = (b0 + b) * ldy + r0;
    if (type == kFloat) store_row(out, count, bias, static_cast<float*>(y) + at, [](float v) { return v; });
    if (type == kBfloat) store_row(out, count, bias, static_cast<uint16_t*>(y) + at, to_bfloat);
    if (type == kHalf) store_row(out, count, bias, static_cast<uint16_t*>(y) + at, to_half);
  }
}

// Memory for one call. A thread keeps what it had for the next one: fresh pages from the system cost more than small
// products do.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    if (bytes > kKept) {
      own_ = aligned(bytes);
      memory = own_.get();
      return;
    }
    static thread_local Bytes kept;
    static thread_local int64_t size = 0;
    if (bytes > size) {
      kept = aligned(bytes);
      size = bytes;
    }
    memory = kept.get();
  }
  char* memory;

 private:
  static constexpr int64_t kKept = 16 << 20;
  Bytes own_;
};

// Bytes that `prepare` fills for kBatch rows of x.
int64_t prepared_bytes(const Matrix& w, Form form, int digits, int64_t* parts) {
  const auto round = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  const int64_t width = (w.cols + kLane - 1) / kLane * kLane, step = w.values == kI4 ? step_of(w) : 0;
  parts[0] = round((form == kFormFloat ? kBatch : 1) * width * 4);
  parts[1] = form == kFormBfloat ? round(kBatch * width * 2) : 0;
  const bool integers = form == kFormDigits || form == kFormPieces;
  parts[2] = integers ? round(kBatch * digits * width * (form == kFormPieces ? 2 : 1)) : 0;
  parts[3] = integers ? round(kBatch * 4) : 0;
  parts[4] = form == kFormDigits ? round(kBatch * 4 * (step ? (w.cols + step - 1) / step * 16 : digits)) : 0;
  return parts[0] + parts[1] + parts[2] + parts[3] + parts[4];
}

// Up to kBatch rows of x, prepared in `memory`.
Acts prepare(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, Type type, int64_t batch, Form form, int digits,
             char* memory) {
  Acts a{};
  a.form = form;
  a.batch = batch;
  a.width = (w.cols + kLane - 1) / kLane * kLane;
  a.digits = digits;
  int64_t parts[5];
  prepared_bytes(w, form, digits, parts);
  a.f = reinterpret_cast<float*>(memory);
  a.h = reinterpret_cast<uint16_t*>(memory += parts[0]);
  a.d = reinterpret_cast<int8_t*>(memory += parts[1]);
  a.p = reinterpret_cast<int16_t*>(memory);
  a.scale = reinterpret_cast<float*>(memory += parts[2]);
  a.sums = reinterpret_cast<int32_t*>(memory += parts[3]);
  k.prepare(w, x, ldx, type, a);
  return a;
}

// Many rows of x, block by block of the weights.
void linear_by_blocks(const Kernels& k, const Matrix& w, const std::vector<Acts>& chunks, uint8_t* x, const float* bias,
                      void* y, int64_t ldy, Type type, int threads) {
  constexpr int64_t kTogether = kMany / kBatch, kRows = 64;
  const int64_t ldx = kTogether * 64;
  for (size_t first = 0; first < chunks.size(); first += kTogether) {
    const int64_t count = std::min(kTogether, int64_t(chunks.size() - first));
    float scales[kMany];
    int64_t batch = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Acts& acts = chunks[first + i];
      std::copy_n(acts.scale, acts.batch, scales + i * kBatch);
      batch += acts.batch;
    }
    for_bands(threads, count, 1, [&](int64_t i, int64_t) { k.interleave(chunks[first + i], x + i * 64, ldx); });
    for_bands(threads, w.rows, kRows, [&](int64_t r0, int64_t r1) {
      float out[kMany * kRows];
      k.many(w, x, ldx, scales, batch, r0, r1, out, r1 - r0);
      store_rows(out, r0, r1, int64_t(first) * kBatch, batch, bias, y, ldy, type);
    });
  }
}

}  // namespace

void linear(const Kernels& k, const Matrix& w, const void* x, int64_t ldx, Type type, int64_t batch, const float* bias,
            void* y, int64_t ldy, bool int8_activations, int threads) {
  threads = threads_for(threads, batch * (kept_in(w) + w.cols));
  const int64_t item = type == kFloat ? 4 : 2;
  const Form form = k.form(w, type, int8_activations);
  const int digits = int8_activations ? 1 : form == kFormPieces ? 2 : 3;
  const bool by_blocks = k.many && int8_activations && w.block == 4 && w.mask && batch > kBatch && w.cols <= kLongest;
  int64_t parts[5];
  const int64_t bytes = prepared_bytes(w, form, digits, parts);
  std::vector<Acts> chunks((batch + kBatch - 1) / kBatch);
  const Scratch scratch(bytes * int64_t(chunks.size()) + (by_blocks ? (w.cols + kLane) * kMany : 0));
  for_bands(threads, int64_t(chunks.size()), 1, [&](int64_t i, int64_t) {
    chunks[i] = prepare(k, w, static_cast<const char*>(x) + i * kBatch * ldx * item, ldx, type,
                        std::min(kBatch, batch - i * kBatch), form, digits, scratch.memory + i * bytes);
  });
  if (by_blocks) {
    uint8_t* side_by_side = reinterpret_cast<uint8_t*>(scratch.memory + bytes * int64_t(chunks.size()));
    return linear_by_blocks(k, w, chunks, side_by_side, bias, y, ldy, type, threads);
  }
  for_bands(threads, w.rows, band_rows(w, threads, w.rows), [&](int64_t r0, int64_t r1) {
    float out[kBatch * kBandRows];
    const int64_t ldo = r1 - r0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const Acts& acts = chunks[i];
      k.rows(w, acts, r0, r1, out, ldo);
      store_rows(out, r0, r1, int64_t(i) * kBatch, acts.batch, bias, y, ldy, type);
    }
  });
}

void expand(const Kernels& k, const Matrix& w, int64_t r0, int64_t r1, void* out, int64_t ldo, Type type, int threads) {
  threads = threads_for(threads, (r1 - r0) * w.cols);
  const int64_t item = type == kFloat ? 4 : type == kCodes ? 1 : 2;
  for_bands(threads, r1 - r0, band_rows(w, threads, r1 - r0), [&](int64_t a, int64_t b) {
    k.expand(w, r0 + a, r0 + b, static_cast<char*>(out) + a * ldo * item, ldo, type);
  });
}

bool find_starts(const Matrix& w, uint32_t* starts) {
  int64_t at = 0;
  const int64_t entries = (w.cols + w.block - 1) / w.block;
  for (int64_t r = 0; r < w.rows; ++r) {
    starts[r] = uint32_t(at);
    int64_t count = w.cols;
    if (w.mask) {
      const uint8_t* mask = w.mask + r * w.stride;
      int64_t set = 0, i = 0;
      for (; i + 8 <= w.stride; i += 8) {
        uint64_t word;
        std::memcpy(&word, mask + i, 8);
        set += int64_t(std::bitset<64>(word).count());
      }
      for (; i < w.stride; ++i) set += int64_t(std::bitset<8>(mask[i]).count());
      if (entries % 8 && mask[w.stride - 1] >> entries % 8) return false;
      count = set * w.block;
    }
    at += w.values == kF32 ? 4 * count : w.values == kI8 ? count : w.values == kI4 ? (count + 1) / 2 : 2 * count;
    if (at > w.data_bytes || at > int64_t(UINT32_MAX)) return false;
  }
  starts[w.rows] = uint32_t(at);
  return at == w.data_bytes;
}

}  // namespace winnow
