/* A clock that is wrong: the time of day is THAW_CLOCK_AHEAD_S ahead, for a process and all that it
 * starts (LD_PRELOAD); the monotonic clock is right. Deadlines by the time of day are set back, as
 * the kernel's clock is right. (libfaketime 0.9.10 makes time.sleep of Python 3.11 fail or hang.) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long ahead_s;
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void begin(void) {
    const char *text = getenv("THAW_CLOCK_AHEAD_S");
    ahead_s = text ? atol(text) : 0;
}

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

long syscall(long number, ...) {
    long a[6];
    struct timespec earlier;
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    if (!real_syscall) real_syscall = next("syscall");
    if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
        earlier = *(const struct timespec *)a[3];
        earlier.tv_sec -= ahead_s;
        a[3] = (long)&earlier;
    }
    long result = real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_clock_gettime && result == 0 && a[0] == CLOCK_REALTIME)
        ((struct timespec *)a[1])->tv_sec += ahead_s;
    return result;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!real_syscall) real_syscall = next("syscall");
    int result = real_syscall(SYS_clock_gettime, clock, at);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        at->tv_sec += ahead_s;
    return result;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    *at = (struct timeval){now.tv_sec, now.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}

/* A deadline by the time of day, rather than by a monotonic clock, which counts from the boot. */
static struct timespec set_back(const struct timespec *deadline) {
    struct timespec earlier = *deadline;
    if (earlier.tv_sec > 1000000000) earlier.tv_sec -= ahead_s;
    return earlier;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *deadline) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    struct timespec earlier = set_back(deadline);
    return real(condition, mutex, &earlier);
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *deadline) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
    if (!real) real = next("pthread_cond_clockwait");
    struct timespec earlier = set_back(deadline);
    return real(condition, mutex, clock, &earlier);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *deadline) {
    static int (*real)(pthread_mutex_t *, const struct timespec *);
    if (!real) real = next("pthread_mutex_timedlock");
    struct timespec earlier = set_back(deadline);
    return real(mutex, &earlier);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline) {
    static int (*real)(sem_t *, const struct timespec *);
    if (!real) real = next("sem_timedwait");
    struct timespec earlier = set_back(deadline);
    return real(semaphore, &earlier);
}

int sem_clockwait(sem_t *semaphore, clockid_t clock, const struct timespec *deadline) {
    static int (*real)(sem_t *, clockid_t, const struct timespec *);
    if (!real) real = next("sem_clockwait");
    struct timespec earlier = set_back(deadline);
    return real(semaphore, clock, &earlier);
}
