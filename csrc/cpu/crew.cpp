#include "crew.h"

#include <thread>

namespace rnnt_fastdecode {
namespace {

// Waiting in the processor for the few microseconds that most waits take, then in turn with other threads.
class Patience {
 public:
  void wait() {
    if (++turns_ > kTurns) {
      std::this_thread::yield();
      return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

 private:
  static constexpr int kTurns = 100;
  int turns_ = 0;
};

}  // namespace

void Crew::share(int64_t chunks, Call call, const void* context) {
  // Closed first: a helper that sees any of the new part can no longer take a chunk of the old one.
  const uint64_t part = (next_.load(std::memory_order_relaxed) / kPart + 1) * kPart;
  next_.store(part + kClosed, std::memory_order_release);
  call_.store(call, std::memory_order_release);
  context_.store(context, std::memory_order_release);
  chunks_.store(static_cast<uint64_t>(chunks), std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  next_.store(part, std::memory_order_release);
  while (take_chunk()) {
  }
  for (Patience patience; done_.load(std::memory_order_acquire) < static_cast<uint64_t>(chunks);) {
    patience.wait();
  }
}

void Crew::help() {
  while (not dismissed_.load(std::memory_order_acquire)) {
    for (Patience patience; not take_chunk();) {
      if (dismissed_.load(std::memory_order_acquire)) return;
      patience.wait();
    }
  }
}

// Takes one chunk of the part at hand and does it; false if there is none to take.
bool Crew::take_chunk() {
  uint64_t next = next_.load(std::memory_order_acquire);
  while (true) {
    const uint64_t chunk = next % kPart;
    const Call call = call_.load(std::memory_order_acquire);
    const void* context = context_.load(std::memory_order_acquire);
    if (chunk >= chunks_.load(std::memory_order_acquire)) return false;
    if (next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      call(context, static_cast<int64_t>(chunk));
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
}

}  // namespace rnnt_fastdecode
