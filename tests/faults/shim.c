/* Preloaded: makes chosen file operations fail, or kills the process in the middle of them.
 *
 * Counted are operations on files below one folder: O open for writing, W write, S fsync, R rename, U unlink. Every one
 * is a line "<op> <path>" of the log, if there is one; the one that is armed is a line "! <path>" besides, and fails
 * with an errno, or, where that is 0, kills the process: a write after half of its bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[PATH_MAX], name[PATH_MAX];
static char operation;
static int countdown, reason, log_file = -1;

#define REAL(symbol) ((__typeof__(&symbol))dlsym(RTLD_NEXT, #symbol))

/* Arm: the `nth` (from 1) operation `op` on a path that begins with `below` and then `part` fails with `number`. */
void fault_arm(const char *below, char op, const char *part, int nth, int number, int log) {
    snprintf(folder, sizeof folder, "%s", below);
    snprintf(name, sizeof name, "%s", part);
    operation = op, countdown = nth, reason = number, log_file = log;
}

static int hit(char op, const char *path) {
    if (!folder[0] || strncmp(path, folder, strlen(folder))) return 0;
    const char *rest = path + strlen(folder);
    if (log_file >= 0) dprintf(log_file, "%c %s\n", op, rest);
    if (op != operation || strncmp(rest, name, strlen(name)) || --countdown != 0) return 0;
    if (log_file >= 0) dprintf(log_file, "! %s\n", rest);
    return 1;
}

static int failed(void) {
    if (!reason) kill(getpid(), SIGKILL);
    errno = reason;
    return -1;
}

static const char *path_of(int fd, char *space) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, space, PATH_MAX - 1);
    space[length > 0 ? length : 0] = 0;
    return space;
}

static const char *absolute(int at, const char *path, char *space) {
    if (path[0] == '/') return path;
    char base[PATH_MAX];
    if (at == AT_FDCWD) { if (!getcwd(base, sizeof base)) base[0] = 0; }
    else path_of(at, base);
    snprintf(space, PATH_MAX, "%.2000s/%.2000s", base, path);
    return space;
}

static int opens(int at, const char *path, int flags) {
    char space[PATH_MAX];
    return (flags & (O_WRONLY | O_RDWR | O_CREAT)) && hit('O', absolute(at, path, space));
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) {
    MODE(flags)
    return opens(AT_FDCWD, path, flags) ? failed() : REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    MODE(flags)
    return opens(AT_FDCWD, path, flags) ? failed() : REAL(open64)(path, flags, mode);
}
int openat(int at, const char *path, int flags, ...) {
    MODE(flags)
    return opens(at, path, flags) ? failed() : REAL(openat)(at, path, flags, mode);
}
int openat64(int at, const char *path, int flags, ...) {
    MODE(flags)
    return opens(at, path, flags) ? failed() : REAL(openat64)(at, path, flags, mode);
}
FILE *fopen(const char *path, const char *mode) {
    if (mode[0] != 'r' && opens(AT_FDCWD, path, O_CREAT)) return failed(), NULL;
    return REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    if (mode[0] != 'r' && opens(AT_FDCWD, path, O_CREAT)) return failed(), NULL;
    return REAL(fopen64)(path, mode);
}

static int writes(int fd) {
    char space[PATH_MAX];
    return folder[0] && hit('W', path_of(fd, space));
}

ssize_t write(int fd, const void *bytes, size_t size) {
    if (!writes(fd)) return REAL(write)(fd, bytes, size);
    if (!reason) REAL(write)(fd, bytes, size / 2);
    return failed();
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!writes(fd)) return REAL(writev)(fd, parts, count);
    if (!reason && count) REAL(write)(fd, parts[0].iov_base, parts[0].iov_len / 2);
    return failed();
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place) {
    if (!writes(fd)) return REAL(pwrite64)(fd, bytes, size, place);
    if (!reason) REAL(pwrite64)(fd, bytes, size / 2, place);
    return failed();
}
size_t fwrite(const void *bytes, size_t size, size_t count, FILE *file) {
    if (!folder[0] || !writes(fileno(file))) return REAL(fwrite)(bytes, size, count, file);
    if (!reason) REAL(fwrite)(bytes, size, count / 2, file), fflush(file);
    return failed(), 0;
}

int fsync(int fd) {
    char space[PATH_MAX];
    return folder[0] && hit('S', path_of(fd, space)) ? failed() : REAL(fsync)(fd);
}
int fdatasync(int fd) {
    char space[PATH_MAX];
    return folder[0] && hit('S', path_of(fd, space)) ? failed() : REAL(fdatasync)(fd);
}
int rename(const char *from, const char *to) {
    char space[PATH_MAX];
    return hit('R', absolute(AT_FDCWD, to, space)) ? failed() : REAL(rename)(from, to);
}
int renameat(int at, const char *from, int where, const char *to) {
    char space[PATH_MAX];
    return hit('R', absolute(where, to, space)) ? failed() : REAL(renameat)(at, from, where, to);
}
int unlink(const char *path) {
    char space[PATH_MAX];
    return hit('U', absolute(AT_FDCWD, path, space)) ? failed() : REAL(unlink)(path);
}
