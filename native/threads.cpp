// Parallel loops on torch's own OpenMP threads where there are any, else on a small pool of our own. Two OpenMP runtimes
// in one process spin against each other after every loop; one does not. A fork copies no threads, and OpenMP waits for
// ever for those of the parent: a forked child gets a pool of our own, started anew.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#ifndef _WIN32
#include <pthread.h>
#endif

#include "winnow.h"

namespace winnow {
namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<GompParallel> gomp{nullptr};

// Multiplications for which a second thread is worth waking: they take about as long as that does.
constexpr int64_t kLeastWork = 1 << 15;

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

  std::mutex turn_, state_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Loop* loop_ = nullptr;
  int wanted_ = 0, running_ = 0;
  uint64_t round_ = 0;
};

std::atomic<Pool*> made{nullptr};  // never destroyed: its threads may outlive static destructors

Pool& pool() {
  Pool* there = made;
  if (!there) {
    Pool* fresh = new Pool;
    if (made.compare_exchange_strong(there, fresh)) return *fresh;
    delete fresh;  // another thread was first
  }
  return *there;
}

#ifndef _WIN32
// In a forked child, whose only thread this is. The parent's pool is left as it lies: its locks may be held by threads
// that do not exist here.
void forked() {
  gomp = nullptr;
  made = nullptr;
}

const int watching = pthread_atfork(nullptr, nullptr, forked);
#endif

}  // namespace

void use_openmp(void* gomp_parallel) { gomp = reinterpret_cast<GompParallel>(gomp_parallel); }

int threads_for(int threads, int64_t work) {
  return int(std::clamp<int64_t>(work / kLeastWork, 1, std::max(threads, 1)));
}

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
