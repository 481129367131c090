// One thread that leads a calculation and others that help it with what it shares out.
//
// The leader runs the serial parts alone and cuts the large ones into chunks. Whoever is free takes the next
// chunk, and the leader waits only for chunks that somebody has begun: a helper that comes late, or that the
// system gives no time, costs its help and nothing else. Starting and ending a shared part takes well under a
// microsecond, a parallel region of OpenMP several, and milliseconds where cores are busy with other work.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace rnnt_fastdecode {

// Multiply-adds below which another thread costs more than it saves.
constexpr int64_t kMinimumWork = 1 << 16;

class Crew {
 public:
  // Calls lead(crew) in one thread, while up to members - 1 others of torch's threads stand by.
  template <typename Lead>
  static void run(int64_t members, const Lead& lead) {
    Crew crew(members);
    if (members <= 1) {
      lead(crew);
      return;
    }
    torch::stable::parallel_for(0, members, 1, [&](int64_t /*begin*/, int64_t /*end*/) {
      if (crew.led_.exchange(true)) {
        crew.help();
        return;
      }
      const Dismissal at_the_end(crew);
      lead(crew);
    });
  }

  int64_t members() const { return members_; }

  // Calls body(chunk) for every chunk in 0 .. chunks - 1, in any thread and order, and returns when all are
  // done. `work` is about how many multiply-adds that is together. Only the leader may call this.
  template <typename Body>
  void share(int64_t chunks, int64_t work, const Body& body) {
    if (members_ <= 1 or chunks <= 1 or work < kMinimumWork) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk) body(chunk);
      return;
    }
    share(
        chunks, [](const void* context, int64_t chunk) { (*static_cast<const Body*>(context))(chunk); },
        &body);
  }

 private:
  using Call = void (*)(const void* context, int64_t chunk);

  struct Dismissal {
    explicit Dismissal(Crew& crew) : crew_(crew) {}
    ~Dismissal() { crew_.dismissed_.store(true, std::memory_order_release); }
    Crew& crew_;
  };

  explicit Crew(int64_t members) : members_(members) {}

  void share(int64_t chunks, Call call, const void* context);
  void help();
  bool take_chunk();

  // The number of the shared part, above the next chunk to take: a chunk is taken only if neither has changed
  // since the part was read.
  static constexpr uint64_t kPart = uint64_t{1} << 32, kClosed = kPart - 1;

  const int64_t members_;
  std::atomic<bool> led_ = false, dismissed_ = false;
  std::atomic<Call> call_ = nullptr;
  std::atomic<const void*> context_ = nullptr;
  std::atomic<uint64_t> chunks_ = 0;
  alignas(64) std::atomic<uint64_t> next_ = kClosed;
  alignas(64) std::atomic<uint64_t> done_ = 0;
};

// How many threads are worth having for `work` multiply-adds in a call.
inline int64_t crew_size(int64_t work) {
  return std::clamp<int64_t>(work / (4 * kMinimumWork), 1, torch::stable::get_num_threads());
}

}  // namespace rnnt_fastdecode
