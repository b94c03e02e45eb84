// Parallel loops on torch's own OpenMP threads where there are any, else on a small pool of our own. Two OpenMP runtimes
// in one process spin against each other after every loop; one does not.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <unistd.h>
#endif

#include "winnow.h"

namespace winnow {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> gomp{nullptr};

struct Loop {
  void (*task)(void*, int64_t);
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
};

void work(void* loop_) {
  Loop& loop = *static_cast<Loop*>(loop_);
  for (int64_t i; (i = loop.next.fetch_add(1, std::memory_order_relaxed)) < loop.tasks;) loop.task(loop.context, i);
}

// Serves one loop at a time; a thread that finds it busy works alone.
class Pool {
 public:
  bool run(int threads, Loop& loop) {
    if (process() != process_) return false;  // a forked child has the pool but not its threads
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(state_);
      while (int(workers_.size()) < threads - 1) {
        const int id = int(workers_.size());
        const uint64_t seen = round_;
        workers_.emplace_back([this, id, seen] { serve(id, seen); });
      }
      loop_ = &loop;
      wanted_ = threads - 1;
      running_ = threads - 1;
      ++round_;
    }
    wake_.notify_all();
    work(&loop);
    std::unique_lock<std::mutex> lock(state_);
    done_.wait(lock, [this] { return running_ == 0; });
    return true;
  }

 private:
  static int64_t process() {
#ifdef _WIN32
    return 0;
#else
    return getpid();
#endif
  }

  void serve(int id, uint64_t seen) {
    for (;;) {
      Loop* loop;
      {
        std::unique_lock<std::mutex> lock(state_);
        wake_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        if (id >= wanted_) continue;
        loop = loop_;
      }
      work(loop);
      std::lock_guard<std::mutex> lock(state_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  const int64_t process_ = process();
  std::mutex turn_, state_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Loop* loop_ = nullptr;
  int wanted_ = 0, running_ = 0;
  uint64_t round_ = 0;
};

Pool& pool() {
  static Pool* pool = new Pool;  // never destroyed: its threads may outlive static destructors
  return *pool;
}

}  // namespace

void use_openmp(void* gomp_parallel) { gomp = reinterpret_cast<GompParallel>(gomp_parallel); }

void parallel(int threads, int64_t tasks, void (*task)(void*, int64_t), void* context) {
  Loop loop{task, context, tasks};
  if (threads > tasks) threads = int(tasks);
  if (threads <= 1) {
    work(&loop);
  } else if (GompParallel run = gomp) {
    run(work, &loop, unsigned(threads), 0);
  } else if (!pool().run(threads, loop)) {
    work(&loop);
  }
}

}  // namespace winnow
