// Faults of a disk, for queue_disk.rs and store_disk.rs. Loaded with LD_PRELOAD.
//
// KINSYNC_DISK_TRACE: file that records what is written to the queue, when it is synced, and what the process prints.
// KINSYNC_DISK_FAIL_SYNC: number of the sync of the queue that fails with EIO.
// KINSYNC_DISK_BAD: "inode first last": reads of these bytes of a file fail with EIO.
// KINSYNC_DISK_CONTROL: file with a first byte that makes calls on the files of the store fail: `N` writes with ENOSPC, `W` writes
// with EIO, `S` syncs with EIO, `R` reads with EIO. Its bytes 8 to 15 count the failures. With `H` syncs of the queue hang.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1, control = -1;
static long fail_sync = -1, syncs = 0, failures = 0;
static unsigned long bad_inode = 0, bad_first = 0, bad_last = 0;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("KINSYNC_DISK_TRACE");
    if (path) trace = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    path = getenv("KINSYNC_DISK_CONTROL");
    if (path) control = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    const char *nth = getenv("KINSYNC_DISK_FAIL_SYNC");
    if (nth) fail_sync = atol(nth);
    const char *bad = getenv("KINSYNC_DISK_BAD");
    if (bad) sscanf(bad, "%lu %lu %lu", &bad_inode, &bad_first, &bad_last);
}

// The name after the last slash, if the descriptor is a file of the queue that must survive.
static const char *queue_file(int fd, char *buffer, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, size - 1);
    if (length <= 0) return NULL;
    buffer[length] = 0;
    const char *name = strrchr(buffer, '/');
    if (!name || strncmp(name + 1, "queue.sqlite", 12) || strstr(name, "-shm")) return NULL;
    return name + 1;
}

// The error of a call on a file of the store, if the control file says one of these faults; else 0.
static int store_fault(int fd, const char *faults) {
    char fault = 0, link[64], path[4096];
    if (control < 0 || syscall(SYS_pread64, control, &fault, 1, 0) != 1 || !fault || !strchr(faults, fault)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    const char *name = strstr(path, "/kinsync.sqlite");
    if (!name || strstr(name, "-shm")) return 0;
    long count = __sync_add_and_fetch(&failures, 1);
    syscall(SYS_pwrite64, control, &count, sizeof count, 8);
    return fault == 'N' ? ENOSPC : EIO;
}

// Waits as long as the control file says that the disk hangs.
static void hang(void) {
    char fault = 0;
    while (control >= 0 && syscall(SYS_pread64, control, &fault, 1, 0) == 1 && fault == 'H') usleep(1000);
}

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        ssize_t written = syscall(SYS_write, trace, at, length);
        if (written <= 0) return;
        at += written;
        length -= written;
    }
}

static void record(char what, const char *name, long offset, const void *bytes, size_t length) {
    if (trace < 0) return;
    char head[512];
    int size = snprintf(head, sizeof head, "%c %s %ld %zu\n", what, name, offset, length);
    pthread_mutex_lock(&lock);
    put(head, size);
    if (bytes) put(bytes, length);
    pthread_mutex_unlock(&lock);
}

static void record_write(int fd, const void *bytes, size_t length, long offset) {
    if (trace < 0) return;
    char buffer[4096];
    if (fd == 1) {
        record('P', "-", 0, bytes, length);
        return;
    }
    const char *name = queue_file(fd, buffer, sizeof buffer);
    if (name) record('W', name, offset, bytes, length);
}

ssize_t write(int fd, const void *bytes, size_t length) {
    int failed = store_fault(fd, "NW");
    if (failed) return errno = failed, -1;
    record_write(fd, bytes, length, fd == 1 ? 0 : syscall(SYS_lseek, fd, 0, SEEK_CUR));
    return syscall(SYS_write, fd, bytes, length);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    int failed = store_fault(fd, "NW");
    if (failed) return errno = failed, -1;
    record_write(fd, bytes, length, offset);
    return syscall(SYS_pwrite64, fd, bytes, length, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

static int is_bad(int fd, long offset, size_t length) {
    struct stat found;
    if (store_fault(fd, "R")) return 1;
    if (!bad_inode || offset < 0 || syscall(SYS_fstat, fd, &found) || found.st_ino != bad_inode) return 0;
    return (unsigned long)offset <= bad_last && (unsigned long)offset + length > bad_first;
}

ssize_t read(int fd, void *bytes, size_t length) {
    if (is_bad(fd, syscall(SYS_lseek, fd, 0, SEEK_CUR), length)) return errno = EIO, -1;
    return syscall(SYS_read, fd, bytes, length);
}

ssize_t pread64(int fd, void *bytes, size_t length, off64_t offset) {
    if (is_bad(fd, offset, length)) return errno = EIO, -1;
    return syscall(SYS_pread64, fd, bytes, length, offset);
}

ssize_t pread(int fd, void *bytes, size_t length, off_t offset) { return pread64(fd, bytes, length, offset); }

static int sync_file(int fd, long call) {
    if (store_fault(fd, "S")) return errno = EIO, -1;
    char buffer[4096];
    const char *name = queue_file(fd, buffer, sizeof buffer);
    if (name) hang();
    if (name && __sync_add_and_fetch(&syncs, 1) == fail_sync) {
        record('F', name, 0, NULL, 0);
        return errno = EIO, -1;
    }
    int failed = syscall(call, fd);
    if (name && !failed) record('S', name, 0, NULL, 0);
    return failed;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }

int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }

int ftruncate64(int fd, off64_t length) {
    char buffer[4096];
    const char *name = queue_file(fd, buffer, sizeof buffer);
    if (name) record('T', name, length, NULL, 0);
    return syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int unlink(const char *path) {
    const char *name = strrchr(path, '/');
    if (name && !strncmp(name + 1, "queue.sqlite", 12) && !strstr(name, "-shm")) record('U', name + 1, 0, NULL, 0);
    return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
}
