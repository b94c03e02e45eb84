// A plain program for AddressSanitizer and UndefinedBehaviorSanitizer (make sanitize): every instruction set this
// processor has, over random matrices whose memory ends exactly where the last value does, against the portable kernels.
// Memory comes by turns from the heap, where the sanitizer watches both ends, and from pages whose neighbour may not be
// touched, where the processor itself stops a read that the sanitizer does not see.
//
// Takes the number of rounds, and the seed of the first one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#ifndef _WIN32
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "cpu.h"
#include "numbers.h"

using namespace winnow;

namespace {

// `bytes` of memory with nothing usable behind them.
class Exact {
 public:
  Exact(size_t bytes, bool pages) {
#ifdef _WIN32
    pages = false;
#else
    if (pages) {
      const size_t page = size_t(sysconf(_SC_PAGESIZE));
      mapped_ = (bytes + page - 1) / page * page + page;
      base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - page, page, PROT_NONE) != 0) std::abort();
      at_ = base_ + mapped_ - page - bytes;
    }
#endif
    if (!pages) at_ = base_ = static_cast<char*>(std::malloc(bytes));
  }
  Exact(const Exact&) = delete;
  ~Exact() {
#ifndef _WIN32
    if (mapped_) {
      munmap(base_, mapped_);
      return;
    }
#endif
    std::free(base_);
  }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(at_);
  }

 private:
  char *base_ = nullptr, *at_ = nullptr;
  size_t mapped_ = 0;
};

using Random = std::mt19937;

int64_t between(Random& g, int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(g); }

float uniform(Random& g) { return std::uniform_real_distribution<float>(-1, 1)(g); }

int64_t item_of(Type type) { return type == kFloat ? 4 : type == kCodes ? 1 : 2; }

void put(void* to, int64_t i, Type type, float value) {
  if (type == kFloat) static_cast<float*>(to)[i] = value;
  if (type == kBfloat) static_cast<uint16_t*>(to)[i] = to_bfloat(value);
  if (type == kHalf) static_cast<uint16_t*>(to)[i] = to_half(value);
}

float get(const void* from, int64_t i, Type type) {
  if (type == kFloat) return static_cast<const float*>(from)[i];
  if (type == kCodes) return static_cast<const int8_t*>(from)[i];
  const uint16_t h = static_cast<const uint16_t*>(from)[i];
  return type == kBfloat ? from_bfloat(h) : from_half(h);
}

struct Packed {
  Matrix w{};
  std::vector<std::unique_ptr<Exact>> memory;

  template <typename T>
  T* copy(const std::vector<T>& content, bool pages) {
    memory.push_back(std::make_unique<Exact>(content.size() * sizeof(T), pages));
    T* to = memory.back()->as<T>();
    if (!content.empty()) std::memcpy(to, content.data(), content.size() * sizeof(T));
    return to;
  }

  Packed(Random& g, bool pages) {
    w.values = int(between(g, kF32, kI4));
    w.block = w.values == kI8 && between(g, 0, 1) ? 4 : 1;
    w.rows = between(g, 1, 40);
    w.cols = between(g, 0, 3) ? between(g, 1, 300) : between(g, 1, 2500);
    if (w.block == 4) w.cols = (w.cols + 3) / 4 * 4;
    const int64_t groups[] = {w.cols, 8, 24, 32, 64, 128, 200, 512};
    w.group = w.values == kI4 ? std::min(w.cols, groups[between(g, 0, 7)]) : w.cols;
    const int64_t entries = w.cols / w.block;
    w.stride = (entries + 7) / 8;
    const double density = between(g, 0, 5) ? std::uniform_real_distribution<double>(0, 1)(g) : 1.0;
    const bool masked = density < 1;

    std::vector<uint8_t> mask(size_t(masked ? w.rows * w.stride : 0)), data;
    for (int64_t r = 0; r < w.rows; ++r) {
      const double here = r % 7 == 3 ? 0 : r % 7 == 5 ? 1 : density;  // empty rows and full ones among them
      int64_t taken = 0;
      for (int64_t e = 0; e < entries; ++e) {
        if (masked && std::uniform_real_distribution<double>(0, 1)(g) >= here) continue;
        if (masked) mask[size_t(r * w.stride + e / 8)] |= uint8_t(1 << e % 8);
        for (int i = 0; i < w.block; ++i) append(g, data, taken++);
      }
    }
    w.mask = masked ? copy(mask, pages) : nullptr;
    w.data = copy(data, pages);
    w.data_bytes = int64_t(data.size());
    uint32_t* starts = copy(std::vector<uint32_t>(size_t(w.rows + 1)), pages);
    w.starts = starts;
    if (!find_starts(w, starts)) std::abort();
    if (w.values >= kI8) {
      std::vector<uint16_t> scales(size_t(w.rows * groups_of(w)));
      for (uint16_t& s : scales) s = to_half(0.005f + 0.004f * uniform(g));
      w.scales = copy(scales, pages);
    }
  }

  void append(Random& g, std::vector<uint8_t>& data, int64_t taken) {
    uint8_t bytes[4] = {};
    if (w.values == kI4) {
      const uint8_t code = uint8_t(between(g, 0, 15));
      if (taken % 2) {
        data.back() |= uint8_t(code << 4);
      } else {
        data.push_back(code);
      }
      return;
    }
    const int64_t item = w.values == kF32 ? 4 : w.values == kI8 ? 1 : 2;
    if (w.values == kI8) bytes[0] = uint8_t(between(g, 0, 255));
    if (w.values < kI8) {
      alignas(4) char value[4] = {};
      put(value, 0, w.values == kF32 ? kFloat : w.values == kF16 ? kHalf : kBfloat, uniform(g));
      std::memcpy(bytes, value, 4);
    }
    data.insert(data.end(), bytes, bytes + item);
  }
};

struct Result {
  std::unique_ptr<Exact> memory;
  int64_t count;
  Type type;
};

Result blank(int64_t count, Type type, bool pages) {
  Result r{std::make_unique<Exact>(size_t(count * item_of(type)), pages), count, type};
  std::memset(r.memory->as<char>(), 0x7f, size_t(count * item_of(type)));  // a large or no number: must be overwritten
  return r;
}

bool close(const Result& a, const Result& b, double allowed, const char* what, const char* isa, const Matrix& w) {
  for (int64_t i = 0; i < a.count; ++i) {
    const double x = get(a.memory->as<char>(), i, a.type), y = get(b.memory->as<char>(), i, b.type);
    const double rounding = a.type == kBfloat ? 0x1p-7 : a.type == kHalf ? 0x1p-10 : 0;
    if (std::fabs(x - y) <= allowed + rounding * std::fabs(x)) continue;
    std::printf("%s on %s: element %lld is %g, not %g (rows %lld cols %lld values %d block %d group %lld %s)\n", what, isa,
                (long long)i, y, x, (long long)w.rows, (long long)w.cols, w.values, w.block, (long long)w.group,
                w.mask ? "masked" : "dense");
    return false;
  }
  return true;
}

bool round_of(unsigned seed) {
  Random g(seed);
  const bool pages = seed % 2;
  const Packed packed(g, pages);
  const Matrix& w = packed.w;
  const Type types[] = {kFloat, kBfloat, kHalf};
  const Type type = types[between(g, 0, 2)];
  const int64_t batch = between(g, 0, 1) ? between(g, 0, 4) : between(g, 0, 35);
  const int threads = int(between(g, 1, 3));
  const int64_t ldx = w.cols + between(g, 0, 3);

  const Exact x(size_t(std::max<int64_t>(0, (batch - 1) * ldx + w.cols) * item_of(type)) * (batch > 0), pages);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < w.cols; ++c) put(x.as<char>(), b * ldx + c, type, uniform(g));
  const Exact columns(size_t(w.cols * batch * 4), pages);
  for (int64_t i = 0; i < w.cols * batch; ++i) columns.as<float>()[i] = uniform(g);
  const Exact bias(size_t(w.rows * 4), pages);
  for (int64_t r = 0; r < w.rows; ++r) bias.as<float>()[r] = uniform(g);
  const float* b = between(g, 0, 1) ? bias.as<float>() : nullptr;
  const bool quantized = w.values >= kI8 && between(g, 0, 1);
  const Type dense = w.values >= kI8 && between(g, 0, 1) ? kCodes : type;
  const int64_t r0 = between(g, 0, w.rows - 1), r1 = between(g, r0, w.rows);

  bool fine = true;
  const double sum = 1e-6 * double(w.cols + 10);
  std::vector<Result> first;
  for (const Kernels* k : usable_kernels()) {
    std::vector<Result> y;
    y.push_back(blank(batch * w.rows, type, pages));
    linear(*k, w, x.as<char>(), ldx, type, batch, b, y[0].memory->as<char>(), w.rows, quantized, threads);
    y.push_back(blank(batch * w.rows, type, pages));
    linear_many(*k, w, x.as<char>(), ldx, type, batch, b, y[1].memory->as<char>(), w.rows, threads);
    y.push_back(blank(batch * w.rows, kFloat, pages));
    times(*k, w, columns.as<float>(), batch, batch, b, y[2].memory->as<float>(), batch, threads);
    y.push_back(blank((r1 - r0) * w.cols, dense, pages));
    expand(*k, w, r0, r1, y[3].memory->as<char>(), w.cols, dense, threads);
    if (first.empty()) {
      first = std::move(y);
      continue;
    }
    const char* names[] = {"linear", "linear_many", "times", "expand"};
    for (int i = 0; i < 4; ++i) fine &= close(first[i], y[i], i == 3 ? 1e-6 : sum, names[i], k->name, w);
  }
  return fine;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned rounds = argc > 1 ? unsigned(std::atoi(argv[1])) : 1000;
  const unsigned from = argc > 2 ? unsigned(std::atoi(argv[2])) : 0;
  for (const Kernels* k : usable_kernels()) std::printf("%s ", k->name);
  unsigned wrong = 0;
  for (unsigned seed = from; seed < from + rounds; ++seed)
    if (!round_of(seed)) std::printf("  ... with seed %u\n", seed), ++wrong;
  std::printf(": %u rounds, %u wrong\n", rounds, wrong);
  return wrong != 0;
}
