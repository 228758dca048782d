// Preloaded beneath the native reader: makes reads short, interrupted or failing, by seed.
//
//   READ_FAULTS_PATH    only files whose path contains this
//   READ_FAULTS_SEED    short counts and EINTR, drawn from this seed
//   READ_FAULTS_OFFSET  reads that cover this offset fail with EIO
//
// io_uring is refused, since nothing can be put between it and the kernel.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_uint injected;
static atomic_uint draws;

unsigned read_faults_injected(void) { return injected; }

static int concerns(int fd) {
  const char* wanted = getenv("READ_FAULTS_PATH");
  char link[64];
  char path[4096];
  if (wanted == NULL) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = '\0';
  return strstr(path, wanted) != NULL;
}

static unsigned draw(const char* seed) {
  // A mixer of one word (splitmix), so that any order of threads draws from one sequence.
  unsigned long long z = strtoull(seed, NULL, 10) + 0x9e3779b97f4a7c15ULL * ++draws;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return (unsigned)(z >> 33);
}

static ssize_t faulty(int fd, void* buffer, size_t count, off_t offset) {
  const char* failing = getenv("READ_FAULTS_OFFSET");
  const char* seed = getenv("READ_FAULTS_SEED");
  if (concerns(fd)) {
    if (failing != NULL && offset <= atoll(failing) && atoll(failing) < offset + (off_t)count) {
      ++injected;
      errno = EIO;
      return -1;
    }
    if (seed != NULL) {
      const unsigned number = draw(seed);
      ++injected;
      if (number % 5 == 0) {
        errno = EINTR;
        return -1;
      }
      // A direct read ends at a page boundary, any other may end anywhere.
      size_t less = 1 + number % (count > 1 << 20 ? count : count + 1);
      if (count % 4096 == 0 && less > 4096) less -= less % 4096;
      if (count % 4096 == 0 && less < 4096) less = 4096;
      if (less < count) count = less;
    }
  }
  return (ssize_t)syscall(SYS_pread64, fd, buffer, count, offset);
}

ssize_t pread(int fd, void* buffer, size_t count, off_t offset) {
  return faulty(fd, buffer, count, offset);
}

ssize_t pread64(int fd, void* buffer, size_t count, off_t offset) {
  return faulty(fd, buffer, count, offset);
}

long syscall(long number, ...) {
  static long (*real)(long, ...);
  long a[6];
  va_list list;
  if (number == SYS_io_uring_setup) {
    errno = ENOSYS;
    return -1;
  }
  if (real == NULL) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  va_start(list, number);
  for (int i = 0; i < 6; ++i) a[i] = va_arg(list, long);
  va_end(list);
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
