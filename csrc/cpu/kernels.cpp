// Which kernels the machine at hand can run, and which of them are used.

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace rnnt_fastdecode {
namespace {

#if defined(__x86_64__)
// From CPUID itself: compilers' __builtin_cpu_supports do not all know the same names.
class Processor {
 public:
  Processor() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (not __get_cpuid(1, &a, &b, &c, &d)) return;
    const bool saves_lanes = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
    if (not saves_lanes) return;
    unsigned kept = 0, high = 0;  // what the system keeps of a thread that it suspends
    asm("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
    if (not __get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    const unsigned extensions = a;
    avx2 = fma and f16c and (b >> 5 & 1) and (kept & 0x06) == 0x06;
    avx512 =
        avx2 and (b >> 16 & 1) and (b >> 30 & 1) and (b >> 31 & 1) and (kept & 0xe6) == 0xe6;  // F, BW, VL
    if (extensions < 1 or not __get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
    avx512_bf16 = avx512 and (a >> 5 & 1);
  }

  bool avx2 = false, avx512 = false, avx512_bf16 = false;
};
#endif

std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  const Processor processor;
  if (processor.avx512_bf16) found.push_back(&avx512_bf16_kernels());
  if (processor.avx512) found.push_back(&avx512_kernels());
  if (processor.avx2) found.push_back(&avx2_kernels());
#endif
  found.push_back(&portable_kernels());
  return found;
}

const Kernels& choose_kernels() {
  const std::vector<const Kernels*> found = find_kernels();
  const char* wanted = std::getenv("RNNT_FASTDECODE_CPU_CAPABILITY");
  if (wanted == nullptr or *wanted == '\0') return *found.front();
  std::string names;
  for (const Kernels* kernels : found) {
    if (std::string(kernels->name) == wanted) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::invalid_argument("RNNT_FASTDECODE_CPU_CAPABILITY must be one of " + names +
                              " on this machine, got " + wanted + ".");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

namespace {

std::vector<std::string> cpu_kernels() {
  std::vector<std::string> names = {kernels().name};
  for (const Kernels* other : find_kernels()) {
    if (other != &kernels()) names.emplace_back(other->name);
  }
  return names;
}

}  // namespace
}  // namespace rnnt_fastdecode

STABLE_TORCH_LIBRARY_IMPL(rnnt_fastdecode, CompositeExplicitAutograd, m) {
  m.impl("cpu_kernels", TORCH_BOX(&rnnt_fastdecode::cpu_kernels));
}
