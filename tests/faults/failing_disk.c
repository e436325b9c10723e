/* LD_PRELOAD: a disk that fails on demand, for the files whose path contains FAULT_PATH.
 *
 * FAULT_PLAN names a file with one line, read at every call: what fails ("sync", "write", "read"),
 * how ("eio", "enospc", or "kill": the process is killed instead of the call), from which call on
 * (counted in this process since the line was first seen; 1 if not given), and "once" if the
 * calls after that one are to succeed. The fault lasts while the file is there.
 * FAULT_LOG gets a line "call result" for every sync and write, so that a test can see what came
 * after a failure.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pwrite64)(int, const void *, size_t, off64_t);
static ssize_t (*real_pread64)(int, void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static const char *plan_path, *match;
static int log_fd = -1;
static char last_plan[128];
static long seen;

__attribute__((constructor)) static void start(void) {
    const char *log = getenv("FAULT_LOG");
    plan_path = getenv("FAULT_PLAN");
    match = getenv("FAULT_PATH");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite");
    real_pwrite64 = dlsym(RTLD_NEXT, "pwrite64");
    real_pread64 = dlsym(RTLD_NEXT, "pread64");
    real_write = dlsym(RTLD_NEXT, "write");
    if (log) log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
}

static int concerned(int fd) {
    char link[64], path[512];
    if (!match) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, match) != NULL;
}

/* The error that this call is to fail with, 0 for none. */
static int fault(const char *call) {
    char line[128] = "", kind[16] = "", error[16] = "", once[16] = "";
    long from = 0;
    if (!plan_path) return 0;
    int fd = open(plan_path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        last_plan[0] = 0;
        return 0;
    }
    ssize_t size = read(fd, line, sizeof line - 1);
    close(fd);
    if (size <= 0) return 0;
    line[size] = 0;
    int fields = sscanf(line, "%15s %15s %ld %15s", kind, error, &from, once);
    if (fields < 2 || strcmp(kind, call)) return 0;
    if (strcmp(line, last_plan)) {
        strcpy(last_plan, line);
        seen = 0;
    }
    long number = __sync_add_and_fetch(&seen, 1);
    if (number < from || (!strcmp(once, "once") && number != from)) return 0;
    if (!strcmp(error, "kill")) kill(getpid(), SIGKILL);
    return strcmp(error, "enospc") ? EIO : ENOSPC;
}

static void note(const char *call, int error) {
    char line[64];
    int size = snprintf(line, sizeof line, "%s %s\n", call, error ? strerror(error) : "ok");
    if (log_fd >= 0 && real_write(log_fd, line, size) != size) abort();
}

static int sync_or_fail(int (*real)(int), int fd) {
    if (!concerned(fd)) return real(fd);
    int error = fault("sync");
    note("sync", error);
    if (!error) return real(fd);
    errno = error;
    return -1;
}

int fsync(int fd) { return sync_or_fail(real_fsync, fd); }
int fdatasync(int fd) { return sync_or_fail(real_fdatasync, fd); }

#define FAIL_OR(call, expression)     \
    if (!concerned(fd)) return expression; \
    int error = fault(call);          \
    if (strcmp(call, "read")) note(call, error); \
    if (!error) return expression;    \
    errno = error;                    \
    return -1;

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    FAIL_OR("write", real_pwrite(fd, data, size, at))
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    FAIL_OR("write", real_pwrite64(fd, data, size, at))
}
ssize_t write(int fd, const void *data, size_t size) {
    FAIL_OR("write", real_write(fd, data, size))
}
ssize_t pread64(int fd, void *data, size_t size, off64_t at) {
    FAIL_OR("read", real_pread64(fd, data, size, at))
}
