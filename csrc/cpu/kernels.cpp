// Which kernels the machine at hand can run, and which of them are used.

#include "kernels.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace rnnt_fastdecode {
namespace {

std::vector<const Kernels*> find_kernels() {
  std::vector<const Kernels*> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") and __builtin_cpu_supports("fma") and __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 and __builtin_cpu_supports("avx512f") and __builtin_cpu_supports("avx512bw") and
                      __builtin_cpu_supports("avx512vl");
  if (avx512 and __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16_kernels());
  if (avx512) found.push_back(&avx512_kernels());
  if (avx2) found.push_back(&avx2_kernels());
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
