// Types of XLA's foreign functions, and work shared among the threads of its pool.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <type_traits>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::ResultBuffer<ffi::F32>;
using Ints = ffi::Span<const int64_t>;

// Calls f(0) ... f(n - 1) on this thread and those of the pool that are free, and returns when all
// have ended. This thread never waits for a call that has not begun, so a busy pool cannot block.
template <typename F>
void Share(ffi::ThreadPool& pool, int64_t n, F f) {
  struct State {
    std::atomic<int64_t> next{0}, ended{0};
    std::mutex mutex;
    std::condition_variable all;
  };
  auto state = std::make_shared<State>();
  auto work = [state, n, f] {
    for (int64_t i; (i = state->next++) < n;) {
      f(i);
      if (++state->ended < n) continue;
      std::lock_guard<std::mutex> lock(state->mutex);
      state->all.notify_all();
    }
  };
  for (int64_t helpers = std::min(pool.num_threads(), n) - 1; helpers > 0; --helpers) {
    pool.Schedule(std::decay_t<decltype(work)>(work));
  }
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all.wait(lock, [&] { return state->ended == n; });
}
