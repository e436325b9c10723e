/* A slow disk, by LD_PRELOAD: every fsync and fdatasync takes longer, and is counted.
 *
 *   SLOW_SYNC_MS    added to every call, in milliseconds (a fraction is allowed)
 *   SLOW_SYNC_LOG   a file that gets one line a call: which call, which file, and when it began and
 *                   ended (nanoseconds of CLOCK_MONOTONIC); the line is written after the sync
 *   SLOW_SYNC_HOLD  while this file exists, a call does not begin: a disk that has stalled
 *
 * cc -O2 -shared -fPIC -o slow_fdatasync.so slow_fdatasync.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int (*sync_call)(int);

static sync_call real_fsync, real_fdatasync;
static long delay_ns;
static const char *hold_path;
static int log_fd = -1;

__attribute__((constructor)) static void set_up(void) {
    const char *delay = getenv("SLOW_SYNC_MS"), *log = getenv("SLOW_SYNC_LOG");
    real_fsync = (sync_call)dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = (sync_call)dlsym(RTLD_NEXT, "fdatasync");
    delay_ns = delay ? (long)(atof(delay) * 1e6) : 0;
    hold_path = getenv("SLOW_SYNC_HOLD");
    if (!log) return;
    log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (log_fd < 0) abort();
    (void)!fchmod(log_fd, 0666); /* a child that gives up root still counts */
}

static long long now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void pause_ns(long ns) {
    struct timespec left = {ns / 1000000000L, ns % 1000000000L};
    while (nanosleep(&left, &left) == -1 && errno == EINTR) {
    }
}

static void write_line(const char *name, int fd, long long began) {
    char link[64], path[512], line[768];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    int size = snprintf(line, sizeof line, "%s %lld %lld %s\n", name, began, now_ns(), path);
    if (write(log_fd, line, size) != size) abort(); /* a count that is short is worse than none */
}

static int slow(sync_call real, const char *name, int fd) {
    long long began = now_ns();
    while (hold_path && access(hold_path, F_OK) == 0) pause_ns(500000);
    if (delay_ns) pause_ns(delay_ns);
    int result = real(fd), saved = errno;
    if (log_fd >= 0) write_line(name, fd, began);
    errno = saved;
    return result;
}

int fsync(int fd) { return slow(real_fsync, "fsync", fd); }
int fdatasync(int fd) { return slow(real_fdatasync, "fdatasync", fd); }
