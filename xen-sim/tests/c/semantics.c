/*
 * What the C functions of grants, event channels and xenstore promise, one test a function, named in the first argument.
 * Several domains in one process: a handle belongs to the domain that XENSIM_DOMID named when it was opened.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xenevtchn.h>
#include <xengnttab.h>
#include <xenstore.h>

#define PAGE 4096

#define CHECK(true_thing)                                                                                   \
    do {                                                                                                    \
        if (!(true_thing)) {                                                                                \
            fprintf(stderr, "%s:%d: not so: %s (errno: %s)\n", __FILE__, __LINE__, #true_thing,             \
                    strerror(errno));                                                                       \
            exit(1);                                                                                        \
        }                                                                                                   \
    } while (0)

/* The call fails, with this errno. */
#define FAILS(failed, error) CHECK((errno = 0, (failed)) && errno == (error))

static void in_domain(int domid)
{
    char text[16];
    snprintf(text, sizeof text, "%d", domid);
    setenv("XENSIM_DOMID", text, 1);
}

static xengntshr_handle *sharer(int domid)
{
    xengntshr_handle *h;
    in_domain(domid);
    CHECK(h = xengntshr_open(NULL, 0));
    return h;
}

static xengnttab_handle *mapper(int domid)
{
    xengnttab_handle *h;
    in_domain(domid);
    CHECK(h = xengnttab_open(NULL, 0));
    return h;
}

static xenevtchn_handle *events(int domid)
{
    xenevtchn_handle *h;
    in_domain(domid);
    CHECK(h = xenevtchn_open(NULL, 0));
    return h;
}

static struct xs_handle *store(int domid)
{
    struct xs_handle *h;
    in_domain(domid);
    CHECK(h = xs_open(0));
    return h;
}

static int readable(int fd)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    return poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

/* Waits for something that another process, or the host on its behalf, is about to do. */
#define EVENTUALLY(true_thing)                                                                              \
    do {                                                                                                    \
        int tries = 6000, so;                                                                               \
        while (!(so = !!(true_thing)) && tries--)                                                           \
            usleep(10000);                                                                                  \
        CHECK(so && #true_thing);                                                                           \
    } while (0)

static sigjmp_buf after_fault;
static volatile int fault_code;

static void on_fault(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    (void)context;
    fault_code = info->si_code;
    siglongjmp(after_fault, 1);
}

/* Writes a byte; returns 0, or the SEGV_* code of the fault. */
static int faults(volatile char *where)
{
    struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
    sigaction(SIGSEGV, &action, NULL);
    fault_code = 0;
    if (!sigsetjmp(after_fault, 1))
        *where = 1;
    signal(SIGSEGV, SIG_DFL);
    return fault_code;
}

static void grants_are_for_one_domain(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2), *three = mapper(3);
    uint32_t ref;
    char *page;

    CHECK(xengntshr_share_pages(one, 2, 1, &ref, 1));
    CHECK(ref != 0);
    FAILS(!xengnttab_map_grant_ref(three, 1, ref, PROT_READ), EINVAL);
    FAILS(!xengnttab_map_grant_ref(two, 1, ref + 1, PROT_READ), EINVAL);
    FAILS(!xengnttab_map_grant_ref(two, 4, ref, PROT_READ), EINVAL);
    FAILS(!xengnttab_map_grant_ref(two, 0x10001, ref, PROT_READ), EINVAL);
    FAILS(!xengnttab_map_domain_grant_refs(two, 0, 1, &ref, PROT_READ), EINVAL);
    FAILS(!xengntshr_share_pages(one, 2, 0, &ref, 1), EINVAL);
    FAILS(!xengntshr_share_pages(one, 2, -1, &ref, 1), EINVAL);
    CHECK(page = xengnttab_map_grant_ref(two, 1, ref, PROT_READ | PROT_WRITE));
    CHECK(!faults(page));
    CHECK(!xengnttab_set_max_grants(two, 100));
}

static void grants_for_reading_cannot_be_written(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    uint32_t ref, writable;
    char *shared, *mapped;

    CHECK(shared = xengntshr_share_pages(one, 2, 1, &ref, 0));
    FAILS(!xengnttab_map_grant_ref(two, 1, ref, PROT_READ | PROT_WRITE), EINVAL);
    CHECK(mapped = xengnttab_map_grant_ref(two, 1, ref, PROT_READ));
    CHECK(!faults(shared));
    CHECK(*mapped == 1);
    CHECK(faults(mapped) == SEGV_ACCERR);
    FAILS(mprotect(mapped, PAGE, PROT_READ | PROT_WRITE), EACCES);

    /* Mapped for reading although writing was granted. */
    CHECK(shared = xengntshr_share_pages(one, 2, 1, &writable, 1));
    CHECK(mapped = xengnttab_map_grant_ref(two, 1, writable, PROT_READ));
    CHECK(faults(mapped) == SEGV_ACCERR);
    CHECK(*shared == 0);
}

static void granted_pages_are_zeroed_and_shared(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    uint32_t refs[3];
    char *shared, *mapped;

    for (int round = 0; round < 3; round++) {
        CHECK(shared = xengntshr_share_pages(one, 2, 3, refs, 1));
        for (int i = 0; i < 3 * PAGE; i++)
            CHECK(shared[i] == 0);
        CHECK(mapped = xengnttab_map_domain_grant_refs(two, 3, 1, refs, PROT_READ | PROT_WRITE));
        memset(shared, 0x55, PAGE);
        memset(mapped + PAGE, 0x66, 2 * PAGE);
        CHECK(!memcmp(shared, mapped, 3 * PAGE));
        CHECK(!xengnttab_unmap(two, mapped, 3));
        CHECK(!xengntshr_unshare(one, shared, 3));
    }
}

static void many_pages_are_mapped_in_one_piece(void)
{
    enum { N = 600 };
    xengntshr_handle *one = sharer(1), *three = sharer(3);
    xengnttab_handle *two = mapper(2);
    uint32_t refs[N], domids[N];
    char *pages[N], *all;

    /* Each a grant of its own, from two domains in turn: as many files as pages. */
    for (int i = 0; i < N; i++) {
        domids[i] = i % 2 ? 1 : 3;
        CHECK(pages[i] = xengntshr_share_pages(i % 2 ? one : three, 2, 1, &refs[i], 1));
        sprintf(pages[i], "page %d", i);
    }
    CHECK(all = xengnttab_map_grant_refs(two, N, domids, refs, PROT_READ));
    for (int i = 0; i < N; i++)
        CHECK(!strcmp(all + i * PAGE, pages[i]));
    CHECK(!xengnttab_unmap(two, all, N));

    /* One bad reference, far behind, and nothing is mapped. */
    refs[N - 1] += 1000;
    FAILS(!xengnttab_map_grant_refs(two, N, domids, refs, PROT_READ), EINVAL);
}

static void unmapping_follows_the_c_library(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    uint32_t refs[2];
    char *shared, *mapped;

    CHECK(shared = xengntshr_share_pages(one, 2, 2, refs, 1));
    CHECK(mapped = xengnttab_map_domain_grant_refs(two, 2, 1, refs, PROT_READ));
    FAILS(xengnttab_unmap(two, NULL, 2), EINVAL);
    FAILS(xengnttab_unmap(two, mapped, 1), EINVAL);
    FAILS(xengnttab_unmap(two, shared, 2), EINVAL);
    CHECK(!xengnttab_unmap(two, mapped, 2));
    FAILS(xengnttab_unmap(two, mapped, 2), EINVAL);
    CHECK(faults(mapped) == SEGV_MAPERR);
    CHECK(!xengntshr_unshare(one, shared, 2));
    FAILS(!xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ), EINVAL);

    /* Pages stay mapped when the handle is closed, and can still be unmapped. */
    CHECK(shared = xengntshr_share_pages(one, 2, 1, refs, 1));
    CHECK(mapped = xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ | PROT_WRITE));
    CHECK(!xengnttab_close(two));
    CHECK(!xengntshr_close(one));
    CHECK(!faults(mapped));
    CHECK(*shared == 1);
    two = mapper(2);
    CHECK(xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ));
    CHECK(!munmap(shared, PAGE));
    FAILS(!xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ), EINVAL);
}

static void pages_outlive_the_sharer(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    uint32_t ref;
    char *shared, *mapped;

    CHECK(shared = xengntshr_share_pages(one, 2, 1, &ref, 1));
    CHECK(mapped = xengnttab_map_grant_ref(two, 1, ref, PROT_READ | PROT_WRITE));
    strcpy(shared, "still here");
    CHECK(!xengntshr_unshare(one, shared, 1));
    CHECK(!xengntshr_close(one));
    CHECK(!strcmp(mapped, "still here"));
    CHECK(!faults(mapped));
    FAILS(!xengnttab_map_grant_ref(two, 1, ref, PROT_READ), EINVAL);
}

static void plain_munmap_gives_pages_back(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    uint32_t refs[4];
    char *shared;

    CHECK(shared = xengntshr_share_pages(one, 2, 4, refs, 1));
    /* Page by page: it is over with the last one. */
    CHECK(!munmap(shared + PAGE, 2 * PAGE));
    CHECK(!munmap(shared, PAGE));
    CHECK(xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ));
    FAILS(munmap(shared + 3 * PAGE + 1, PAGE), EINVAL);
    FAILS(munmap(shared + 3 * PAGE, 0), EINVAL);
    CHECK(xengnttab_map_grant_ref(two, 1, refs[3], PROT_READ));
    CHECK(!munmap(shared + 3 * PAGE, 1));
    FAILS(!xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ), EINVAL);

    /* Two in one go, with what lies between them. */
    char *room = mmap(NULL, 3 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    CHECK(shared = xengntshr_share_pages(one, 2, 1, refs, 1));
    CHECK(!munmap(room, 3 * PAGE));
    CHECK(xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ));
    CHECK(!munmap(shared, PAGE));
    FAILS(!xengnttab_map_grant_ref(two, 1, refs[0], PROT_READ), EINVAL);
}

static void the_grant_limit_is_nospc(void)
{
    xengntshr_handle *one = sharer(1), *two = sharer(2);
    uint32_t refs[1024];
    char *most;

    CHECK(most = xengntshr_share_pages(one, 2, 1000, refs, 1));
    FAILS(!xengntshr_share_pages(one, 2, 25, refs, 1), ENOSPC);
    CHECK(xengntshr_share_pages(two, 1, 1024, refs, 1));
    CHECK(xengntshr_share_pages(one, 2, 24, refs, 1));
    CHECK(!xengntshr_unshare(one, most, 1000));
    CHECK(xengntshr_share_pages(one, 2, 1000, refs, 1));
}

static void a_child_takes_nothing_from_its_parent(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    uint32_t ref;
    char *shared, *mapped;
    int status;

    CHECK(shared = xengntshr_share_pages(one, 2, 1, &ref, 1));
    CHECK(mapped = xengnttab_map_grant_ref(two, 1, ref, PROT_READ));
    if (!fork()) {
        CHECK(faults(mapped) == SEGV_MAPERR); /* as gntdev has it: not inherited */
        CHECK(!munmap(shared, PAGE));
        xengntshr_close(one);
        xengnttab_close(two);
        _exit(0);
    }
    CHECK(wait(&status) > 0 && status == 0);
    CHECK(xengnttab_map_grant_ref(two, 1, ref, PROT_READ));
    CHECK(!faults(shared));
    CHECK(*mapped == 1);
}

static void bind_pair(xenevtchn_handle *one, int *port_one, xenevtchn_handle *two, int *port_two)
{
    CHECK((*port_one = xenevtchn_bind_unbound_port(one, 2)) > 0);
    CHECK((*port_two = xenevtchn_bind_interdomain(two, 1, *port_one)) > 0);
    CHECK(xenevtchn_pending(two) == *port_two);
    CHECK(!xenevtchn_unmask(two, *port_two));
}

static void unmap_notifications(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    xenevtchn_handle *events_one = events(1), *events_two = events(2);
    int port_one, port_two;
    uint32_t ref;
    char *shared, *mapped;

    bind_pair(events_one, &port_one, events_two, &port_two);
    FAILS(!xengntshr_share_page_notify(one, 2, &ref, 1, 21, port_one + 1), EINVAL);
    CHECK(shared = xengntshr_share_page_notify(one, 2, &ref, 1, 21, port_one));
    FAILS(!xengnttab_map_grant_ref_notify(two, 1, ref, PROT_READ | PROT_WRITE, 20, port_one), EINVAL);
    CHECK(mapped = xengnttab_map_grant_ref_notify(two, 1, ref, PROT_READ | PROT_WRITE, 20, port_two));
    memset(shared, 7, PAGE);

    /* The mapper leaves. */
    CHECK(!xengnttab_unmap(two, mapped, 1));
    CHECK(shared[19] == 7 && shared[20] == 0 && shared[21] == 7);
    CHECK(xenevtchn_pending(events_one) == port_one);
    CHECK(!xenevtchn_unmask(events_one, port_one));
    CHECK(!readable(xenevtchn_fd(events_one)));

    /* The sharer leaves; its event channel handle is closed first, and the event is sent nevertheless. */
    CHECK(mapped = xengnttab_map_grant_ref_notify(two, 1, ref, PROT_READ | PROT_WRITE, -1, -1));
    CHECK(!xenevtchn_close(events_one));
    CHECK(!readable(xenevtchn_fd(events_two)));
    CHECK(!xengntshr_unshare(one, shared, 1));
    CHECK(mapped[20] == 0 && mapped[21] == 0 && mapped[22] == 7);
    CHECK(xenevtchn_pending(events_two) == port_two);

    /* An offset outside of the page and port -1 ask for nothing. */
    CHECK(!xengnttab_unmap(two, mapped, 1));
    CHECK(!xenevtchn_unmask(events_two, port_two));
    CHECK(!readable(xenevtchn_fd(events_two)));

    /* The port is unbound again only now: nobody can notify through it. */
    events_one = events(1);
    CHECK(xenevtchn_bind_interdomain(events_one, 2, port_two) > 0);
}

static void a_killed_sharer_clears_its_byte(void)
{
    xengnttab_handle *two;
    xenevtchn_handle *events_two;
    int pipes[2], port_two;
    struct { uint32_t ref; int port; } told;
    char *mapped;
    pid_t child;

    CHECK(!pipe(pipes));
    if (!(child = fork())) {
        xengntshr_handle *one = sharer(1);
        xenevtchn_handle *events_one = events(1);
        char *shared;
        CHECK((told.port = xenevtchn_bind_unbound_port(events_one, 2)) > 0);
        CHECK(shared = xengntshr_share_page_notify(one, 2, &told.ref, 1, 21, told.port));
        memset(shared, 7, PAGE);
        CHECK(write(pipes[1], &told, sizeof told) == sizeof told);
        for (;;)
            pause();
    }
    CHECK(read(pipes[0], &told, sizeof told) == sizeof told);
    two = mapper(2);
    events_two = events(2);
    CHECK((port_two = xenevtchn_bind_interdomain(events_two, 1, told.port)) > 0);
    CHECK(mapped = xengnttab_map_grant_ref(two, 1, told.ref, PROT_READ | PROT_WRITE));
    CHECK(xenevtchn_pending(events_two) == port_two);
    /* Not unmasked: the event of a death comes through all the same. */
    CHECK(mapped[21] == 7);
    CHECK(!kill(child, SIGKILL));
    CHECK(xenevtchn_pending(events_two) == port_two);
    CHECK(mapped[20] == 7 && mapped[21] == 0 && mapped[22] == 7);
    /* And its grants and ports are gone. */
    EVENTUALLY(!xengnttab_map_grant_ref(two, 1, told.ref, PROT_READ));
    EVENTUALLY(xenevtchn_bind_interdomain(events(1), 2, port_two) > 0);
    CHECK(waitpid(child, NULL, 0) == child);
}

static void events_coalesce_and_wait_for_unmask(void)
{
    xenevtchn_handle *one = events(1), *two = events(2);
    int port_one, port_two, other_one, other_two, fd;
    uint32_t ports[2];

    bind_pair(one, &port_one, two, &port_two);
    bind_pair(one, &other_one, two, &other_two);
    fd = xenevtchn_fd(one);
    CHECK(fd >= 0 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
    CHECK(!readable(fd));
    CHECK(!xenevtchn_notify(two, port_two));
    CHECK(!xenevtchn_notify(two, port_two));
    CHECK(readable(fd) && readable(fd));
    CHECK(xenevtchn_pending(one) == port_one);
    CHECK(!readable(fd)); /* the second one was the same event */

    CHECK(!xenevtchn_notify(two, port_two));
    CHECK(!readable(fd)); /* masked */
    CHECK(!xenevtchn_unmask(one, port_one));
    CHECK(readable(fd)); /* delivered late, not lost */
    CHECK(!xenevtchn_notify(two, other_two));
    CHECK(read(fd, ports, sizeof ports) == sizeof ports);
    CHECK((int)ports[0] == port_one && (int)ports[1] == other_one);
    CHECK(!xenevtchn_unmask(one, port_one));
    CHECK(!xenevtchn_unmask(one, port_one));
    CHECK(!readable(fd));
    CHECK(!xenevtchn_unmask(one, 12345)); /* ignored */

    CHECK(!fcntl(fd, F_SETFL, O_NONBLOCK));
    FAILS(xenevtchn_pending(one) == -1, EAGAIN);
    CHECK(!xenevtchn_unmask(one, other_one));
    CHECK(!xenevtchn_notify(one, port_one)); /* and the other way */
    CHECK(xenevtchn_pending(two) == port_two);
}

static void binding_follows_xen(void)
{
    xenevtchn_handle *one = events(1), *two = events(2), *three = events(3);
    int port, local;

    CHECK((port = xenevtchn_bind_unbound_port(one, 2)) > 0);
    CHECK(!xenevtchn_notify(one, port)); /* nobody there: lost */
    FAILS(xenevtchn_bind_interdomain(three, 1, port) == -1, EINVAL);
    FAILS(xenevtchn_bind_interdomain(two, 1, port + 1) == -1, EINVAL);
    FAILS(xenevtchn_bind_interdomain(two, 999, port) == -1, ESRCH);
    CHECK((local = xenevtchn_bind_interdomain(two, 1, port)) > 0);
    CHECK(local != port);
    FAILS(xenevtchn_bind_interdomain(two, 1, port) == -1, EINVAL);
    CHECK(readable(xenevtchn_fd(two)));  /* pending from the start */
    CHECK(!readable(xenevtchn_fd(one)));
    FAILS(xenevtchn_notify(one, local) == -1, ENOTCONN);
    FAILS(xenevtchn_notify(three, port) == -1, ENOTCONN);
    FAILS(xenevtchn_unbind(two, port) == -1, ENOTCONN);
    CHECK((port = xenevtchn_bind_unbound_port(one, DOMID_SELF)) > 0);
    CHECK(xenevtchn_bind_interdomain(one, DOMID_SELF, port) > 0);
    CHECK(xenevtchn_bind_virq(one, 3) > 0);
    FAILS(xenevtchn_bind_virq(one, 3) == -1, EEXIST);
    FAILS(xenevtchn_bind_virq(one, 24) == -1, EINVAL);
    FAILS(!xenevtchn_open(NULL, 2), EINVAL);
}

static void closing_makes_the_peer_unbound(void)
{
    xenevtchn_handle *one = events(1), *two = events(2);
    int port_one, port_two, again;

    bind_pair(one, &port_one, two, &port_two);
    CHECK(!xenevtchn_unbind(two, port_two));
    FAILS(xenevtchn_unbind(two, port_two) == -1, ENOTCONN);
    CHECK(!readable(xenevtchn_fd(one))); /* Xen sends nothing */
    CHECK(!xenevtchn_notify(one, port_one));
    CHECK((again = xenevtchn_bind_interdomain(two, 1, port_one)) > 0);
    CHECK(xenevtchn_pending(two) == again);
    CHECK(!xenevtchn_unmask(two, again));
    CHECK(!xenevtchn_notify(one, port_one));
    CHECK(xenevtchn_pending(two) == again);

    CHECK(!xenevtchn_close(two));
    two = events(2);
    CHECK((again = xenevtchn_bind_interdomain(two, 1, port_one)) > 0);
    CHECK(!xenevtchn_notify(two, again));
    CHECK(xenevtchn_pending(one) == port_one);
    CHECK(!xenevtchn_close(one));
    CHECK(!xenevtchn_notify(two, again)); /* nobody there, and no SIGPIPE */
}

static void restricting_a_handle(void)
{
    xenevtchn_handle *one = events(1);

    FAILS(xenevtchn_restrict(one, 0) == -1, EINVAL);
    CHECK(!xenevtchn_restrict(one, 2));
    FAILS(xenevtchn_restrict(one, 2) == -1, EACCES);
    FAILS(xenevtchn_bind_unbound_port(one, 3) == -1, EACCES);
    FAILS(xenevtchn_bind_interdomain(one, 3, 1) == -1, EACCES);
    FAILS(xenevtchn_bind_virq(one, 3) == -1, EACCES);
    CHECK(xenevtchn_bind_unbound_port(one, 2) > 0);
}

static void a_program_that_is_executed_closes_what_it_had(void)
{
    xengnttab_handle *two = mapper(2);
    uint32_t ref;
    int pipes[4];
    char *mapped;
    pid_t child;

    CHECK(!pipe(pipes) && !pipe(pipes + 2));
    if (!(child = fork())) {
        xengntshr_handle *one = sharer(1);
        char *shared;
        CHECK(shared = xengntshr_share_page_notify(one, 2, &ref, 1, 0, -1));
        *shared = 1;
        CHECK(write(pipes[1], &ref, sizeof ref) == sizeof ref);
        CHECK(read(pipes[2], &ref, 1) == 1); /* it is mapped */
        execl("/bin/sleep", "sleep", "60", NULL);
        _exit(1);
    }
    CHECK(read(pipes[0], &ref, sizeof ref) == sizeof ref);
    CHECK(mapped = xengnttab_map_grant_ref(two, 1, ref, PROT_READ));
    CHECK(*mapped == 1);
    CHECK(write(pipes[3], "", 1) == 1);
    EVENTUALLY(*(volatile char *)mapped == 0);
    CHECK(!kill(child, 0)); /* alive: it is sleep now */
    kill(child, SIGKILL);
    wait(NULL);
}

static int has(struct xs_handle *h, xs_transaction_t t, const char *path, const char *value)
{
    unsigned int len = 12345;
    char *got = xs_read(h, t, path, &len);
    int same = got && len == strlen(value) && !strcmp(got, value);
    free(got);
    return same;
}

static void put(struct xs_handle *h, xs_transaction_t t, const char *path, const char *value)
{
    CHECK(xs_write(h, t, path, value, strlen(value)));
}

static void store_values_and_lists(void)
{
    struct xs_handle *one = store(1);
    unsigned int n = 0;
    char **names, *got, big[5000];

    CHECK(has(one, 0, "domid", "1"));
    put(one, 0, "data/a", "first");
    CHECK(has(one, 0, "/local/domain/1/data/a", "first"));
    CHECK((got = xs_read(one, 0, "data/a", NULL)) && !strcmp(got, "first"));
    free(got);
    CHECK(xs_write(one, 0, "data/bytes", "a\0b\n\377", 5));
    CHECK((got = xs_read(one, 0, "data/bytes", &n)) && n == 5 && !memcmp(got, "a\0b\n\377", 6));
    free(got);
    CHECK(xs_write(one, 0, "data/empty", NULL, 0));
    CHECK(has(one, 0, "data/empty", ""));
    CHECK(xs_mkdir(one, 0, "data/dir") && xs_mkdir(one, 0, "data/dir"));
    CHECK((names = xs_directory(one, 0, "data", &n)) && n == 4);
    CHECK(!strcmp(names[0], "a") && !strcmp(names[1], "bytes") && !strcmp(names[2], "dir"));
    free(names);
    CHECK((names = xs_directory(one, 0, "data/dir", &n)) && n == 0);
    free(names);
    FAILS(!xs_read(one, 0, "data/none", &n), ENOENT);
    FAILS(!xs_directory(one, 0, "data/none", &n), ENOENT);
    FAILS(!xs_read(one, 0, "data//a", &n), EINVAL);
    FAILS(!xs_read(one, 7, "data/a", &n), ENOENT);
    memset(big, 'x', sizeof big);
    FAILS(!xs_write(one, 0, "data/big", big, 2048), ENOSPC);
    FAILS(!xs_write(one, 0, "data/big", big, 4096), E2BIG);
    CHECK(xs_rm(one, 0, "data/a"));
    FAILS(!xs_read(one, 0, "data/a", &n), ENOENT);
    CHECK(xs_rm(one, 0, "data/a"));
    FAILS(!xs_rm(one, 0, "data/none/none"), ENOENT);
    CHECK((got = xs_get_domain_path(one, 42)) && !strcmp(got, "/local/domain/42"));
    free(got);
    CHECK(xs_path_is_subpath("/a/b", "/a/b") && xs_path_is_subpath("/a/b", "/a/b/c"));
    CHECK(!xs_path_is_subpath("/a/b", "/a/bc") && !xs_path_is_subpath("/a/b", "/a"));
    FAILS(!xs_control_command(one, "help", NULL, 0), ENOSYS);
    CHECK(xs_suspend_evtchn_port(1) == -1);
    put(one, 0, "device/suspend/event-channel", "17");
    CHECK(xs_suspend_evtchn_port(1) == 17);
}

static void store_permissions(void)
{
    struct xs_handle *zero = store(0), *one = store(1), *two = store(2);
    const char *path = "/local/domain/1/data/x";
    struct xs_permissions *got, parsed[2];
    struct xs_permissions perms[] = { { 1, XS_PERM_NONE }, { 2, XS_PERM_READ } };
    struct xs_permissions stolen[] = { { 2, XS_PERM_NONE } };
    struct xs_permissions wrong[] = { { 1, 0x40 } };
    unsigned int n;

    put(one, 0, "data/x", "v");
    FAILS(!xs_read(two, 0, path, &n), EACCES);
    FAILS(!xs_read(two, 0, "/local/domain/1/data/none", &n), EACCES);
    FAILS(!xs_write(two, 0, path, "w", 1), EACCES);
    CHECK(xs_set_permissions(one, 0, path, perms, 2));
    CHECK((got = xs_get_permissions(two, 0, path, &n)) && n == 2);
    CHECK(!memcmp(got, perms, sizeof perms));
    free(got);
    CHECK(has(two, 0, path, "v"));
    FAILS(!xs_write(two, 0, path, "w", 1), EACCES);
    FAILS(!xs_set_permissions(two, 0, path, stolen, 1), EACCES);
    FAILS(!xs_set_permissions(one, 0, path, stolen, 1), EPERM);
    FAILS(!xs_set_permissions(one, 0, path, wrong, 1), EINVAL);
    FAILS(!xs_set_permissions(one, 0, path, perms, 0), EINVAL);
    CHECK(xs_set_permissions(zero, 0, path, stolen, 1));
    FAILS(!xs_read(one, 0, path, &n), EACCES);
    put(zero, 0, path, "dom0 may");
    FAILS(!xs_write(one, 0, "/tool/x", "w", 1), EACCES);
    put(zero, 0, "/tool/x", "w");

    CHECK(xs_strings_to_perms(parsed, 2, "b7\0n32751"));
    CHECK(parsed[0].id == 7 && parsed[0].perms == (XS_PERM_READ | XS_PERM_WRITE));
    CHECK(parsed[1].id == 32751 && parsed[1].perms == XS_PERM_NONE);
    FAILS(!xs_strings_to_perms(parsed, 1, "x7"), EINVAL);
    FAILS(!xs_strings_to_perms(parsed, 1, "r"), EINVAL);
}

static void store_transactions(void)
{
    struct xs_handle *one = store(1), *other = store(1);
    xs_transaction_t t, u, open[11];

    CHECK(t = xs_transaction_start(one));
    put(one, t, "data/a", "1");
    CHECK(has(one, t, "data/a", "1"));
    FAILS(!xs_read(other, 0, "data/a", NULL), ENOENT);
    CHECK(xs_transaction_end(one, t, false));
    CHECK(has(other, 0, "data/a", "1"));
    FAILS(!xs_transaction_end(one, t, false), ENOENT);

    CHECK(t = xs_transaction_start(one));
    put(one, t, "data/a", "2");
    CHECK(xs_transaction_end(one, t, true));
    CHECK(has(one, 0, "data/a", "1"));

    CHECK((t = xs_transaction_start(one)) && (u = xs_transaction_start(other)));
    CHECK(has(one, t, "data/a", "1"));
    put(one, t, "data/b", "from t");
    put(other, u, "data/a", "3");
    CHECK(xs_transaction_end(other, u, false));
    FAILS(!xs_transaction_end(one, t, false), EAGAIN);
    FAILS(!xs_read(one, 0, "data/b", NULL), ENOENT);

    /* As xenstored counts: the quota of 10 is exceeded by the twelfth. */
    for (int i = 0; i < 11; i++)
        CHECK(open[i] = xs_transaction_start(one));
    FAILS(!xs_transaction_start(one), ENOSPC);
    FAILS(!xs_transaction_start(other), ENOSPC);
    xs_close(one);
    CHECK(xs_transaction_start(other));
    (void)open;
}

static void *write_later(void *argument)
{
    usleep(50000);
    put(argument, 0, "data/late", "x");
    return NULL;
}

static int event_is(char **event, const char *path, const char *token)
{
    int same = event && !strcmp(event[XS_WATCH_PATH], path) && !strcmp(event[XS_WATCH_TOKEN], token);
    free(event);
    return same;
}

static void store_watches(void)
{
    struct xs_handle *one = store(1), *other = store(1);
    unsigned int n = 0;
    char path[64];
    pthread_t thread;
    int fd = xs_fileno(one);

    CHECK(fd >= 0 && !readable(fd));
    FAILS(!xs_check_watch(one), EAGAIN);
    CHECK(xs_watch(one, "data", "token"));
    FAILS(!xs_watch(one, "data", "token"), EEXIST);
    CHECK(readable(fd));
    CHECK(event_is(xs_read_watch(one, &n), "data", "token") && n == 2);
    CHECK(!readable(fd));
    for (int i = 0; i < 40; i++) {
        snprintf(path, sizeof path, "data/%d", i);
        put(other, 0, path, "x");
        put(other, 0, path, "y"); /* the same event: once */
    }
    for (int i = 0; i < 40; i++) {
        CHECK(readable(fd));
        snprintf(path, sizeof path, "data/%d", i);
        CHECK(event_is(xs_check_watch(one), path, "token"));
    }
    CHECK(!readable(fd));
    FAILS(!xs_check_watch(one), EAGAIN);
    CHECK(!pthread_create(&thread, NULL, write_later, other));
    CHECK(event_is(xs_read_watch(one, &n), "data/late", "token"));
    pthread_join(thread, NULL);
    CHECK(xs_unwatch(one, "data", "token"));
    FAILS(!xs_unwatch(one, "data", "token"), ENOENT);
    put(other, 0, "data/late", "z");
    CHECK(!readable(fd));
}

static void store_unwatch_filter(void)
{
    struct xs_handle *plain, *filtering;

    in_domain(1);
    CHECK((plain = xs_open(0)) && (filtering = xs_open(XS_UNWATCH_FILTER)));
    CHECK(xs_watch(plain, "data", "t") && xs_watch(filtering, "data", "t") && xs_watch(filtering, "data", "kept"));
    put(plain, 0, "data/x", "1");
    CHECK(xs_unwatch(plain, "data", "t") && xs_unwatch(filtering, "data", "t"));
    CHECK(event_is(xs_check_watch(plain), "data", "t"));
    CHECK(event_is(xs_check_watch(plain), "data/x", "t"));
    CHECK(event_is(xs_check_watch(filtering), "data", "kept"));
    CHECK(event_is(xs_check_watch(filtering), "data/x", "kept"));
    CHECK(!readable(xs_fileno(filtering)));
}

static void domains_are_introduced_and_released(void)
{
    struct xs_handle *zero = store(0), *one = store(1);
    xenevtchn_handle *events_zero = events(0);

    CHECK(xs_watch(zero, "@releaseDomain", "r") && xs_watch(zero, "@introduceDomain", "i"));
    CHECK(event_is(xs_check_watch(zero), "@releaseDomain", "r"));
    CHECK(event_is(xs_check_watch(zero), "@introduceDomain", "i"));
    CHECK(!xs_is_domain_introduced(zero, 5));
    FAILS(xenevtchn_bind_interdomain(events_zero, 5, 1) == -1, ESRCH);
    FAILS(!xs_introduce_domain(one, 5, 0, 1), EACCES);
    FAILS(!xs_introduce_domain(zero, 5, 0, 0), EINVAL);
    CHECK(xs_introduce_domain(zero, 5, 0, 1));
    CHECK(event_is(xs_check_watch(zero), "@introduceDomain", "i"));
    CHECK(xs_is_domain_introduced(zero, 5) && has(zero, 0, "/local/domain/5/domid", "5"));
    FAILS(xenevtchn_bind_interdomain(events_zero, 5, 1) == -1, EINVAL);
    CHECK(xs_resume_domain(zero, 5));
    CHECK(xs_set_target(zero, 5, 1));
    put(one, 0, "data/x", "one's");
    CHECK(has(store(5), 0, "/local/domain/1/data/x", "one's"));
    CHECK(xs_release_domain(zero, 5));
    CHECK(event_is(xs_check_watch(zero), "@releaseDomain", "r"));
    FAILS(!xs_release_domain(zero, 5), ENOENT);
    CHECK(!xs_restrict(zero, 1));
}

static void null_pointers_are_refused(void)
{
    xengntshr_handle *one = sharer(1);
    xengnttab_handle *two = mapper(2);
    struct xs_handle *h = store(1);
    uint32_t ref;

    FAILS(!xengnttab_map_grant_ref(NULL, 1, 8, PROT_READ), EINVAL);
    FAILS(!xengnttab_map_domain_grant_refs(two, 1, 1, NULL, PROT_READ), EINVAL);
    FAILS(!xengnttab_map_grant_refs(two, 1, NULL, &ref, PROT_READ), EINVAL);
    FAILS(!xengntshr_share_pages(NULL, 1, 1, &ref, 1), EINVAL);
    FAILS(!xengntshr_share_pages(one, 1, 1, NULL, 1), EINVAL);
    FAILS(!xengntshr_share_page_notify(one, 1, NULL, 1, 0, -1), EINVAL);
    FAILS(xenevtchn_notify(NULL, 1) == -1, EINVAL);
    FAILS(xenevtchn_pending(NULL) == -1, EINVAL);
    FAILS(!xs_read(NULL, 0, "data", NULL), EINVAL);
    FAILS(!xs_read(h, 0, NULL, NULL), EINVAL);
    FAILS(!xs_write(h, 0, "data", NULL, 5), EINVAL);
    FAILS(!xs_set_permissions(h, 0, "data", NULL, 1), EINVAL);
    FAILS(!xs_watch(h, "data", NULL), EINVAL);
    CHECK(xengnttab_close(NULL) == 0 && xengntshr_close(NULL) == 0 && xenevtchn_close(NULL) == 0);
    xs_close(NULL);
}

static xenevtchn_handle *shared_one, *shared_two;
static int shared_port_one, shared_port_two;

static void *answer(void *argument)
{
    (void)argument;
    for (int i = 0; i < 5000; i++) {
        CHECK(xenevtchn_pending(shared_two) == shared_port_two);
        CHECK(!xenevtchn_unmask(shared_two, shared_port_two));
        CHECK(!xenevtchn_notify(shared_two, shared_port_two));
    }
    return NULL;
}

static void *churn(void *argument)
{
    struct xs_handle *h = argument;
    xengntshr_handle *one = xengntshr_open(NULL, 0);
    char path[64];

    CHECK(one);
    for (int i = 0; i < 100; i++) {
        uint32_t refs[3];
        char *pages;
        int port;
        CHECK((port = xenevtchn_bind_unbound_port(shared_one, 2)) > 0);
        CHECK(pages = xengntshr_share_pages(one, 2, 3, refs, 1));
        memset(pages, i, 3 * PAGE);
        snprintf(path, sizeof path, "data/%d-%d", port, i);
        put(h, 0, path, path);
        CHECK(has(h, 0, path, path));
        CHECK(xs_rm(h, 0, path));
        CHECK(!xengntshr_unshare(one, pages, 3));
        CHECK(!xenevtchn_unbind(shared_one, port));
    }
    CHECK(!xengntshr_close(one));
    return NULL;
}

static void threads_share_handles(void)
{
    struct xs_handle *h = store(1);
    pthread_t threads[4];

    shared_one = events(1);
    shared_two = events(2);
    in_domain(1);
    bind_pair(shared_one, &shared_port_one, shared_two, &shared_port_two);
    CHECK(!pthread_create(&threads[0], NULL, answer, NULL));
    for (int i = 1; i < 4; i++)
        CHECK(!pthread_create(&threads[i], NULL, churn, h));
    for (int i = 0; i < 5000; i++) {
        CHECK(!xenevtchn_notify(shared_one, shared_port_one));
        CHECK(xenevtchn_pending(shared_one) == shared_port_one);
        CHECK(!xenevtchn_unmask(shared_one, shared_port_one));
    }
    for (int i = 0; i < 4; i++)
        CHECK(!pthread_join(threads[i], NULL));
}

static void count_to(int rounds)
{
    struct xs_handle *h;
    CHECK(h = xs_open(0));
    while (rounds) {
        char text[16], *old;
        xs_transaction_t t;
        CHECK(t = xs_transaction_start(h));
        old = xs_read(h, t, "/counter", NULL);
        snprintf(text, sizeof text, "%d", (old ? atoi(old) : 0) + 1);
        free(old);
        put(h, t, "/counter", text);
        if (xs_transaction_end(h, t, false))
            rounds--;
        else
            CHECK(errno == EAGAIN);
    }
    xs_close(h);
}

#define TEST(name) { #name, name }

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(grants_are_for_one_domain),
    TEST(grants_for_reading_cannot_be_written),
    TEST(granted_pages_are_zeroed_and_shared),
    TEST(many_pages_are_mapped_in_one_piece),
    TEST(unmapping_follows_the_c_library),
    TEST(pages_outlive_the_sharer),
    TEST(plain_munmap_gives_pages_back),
    TEST(the_grant_limit_is_nospc),
    TEST(a_child_takes_nothing_from_its_parent),
    TEST(unmap_notifications),
    TEST(a_killed_sharer_clears_its_byte),
    TEST(events_coalesce_and_wait_for_unmask),
    TEST(binding_follows_xen),
    TEST(closing_makes_the_peer_unbound),
    TEST(restricting_a_handle),
    TEST(a_program_that_is_executed_closes_what_it_had),
    TEST(store_values_and_lists),
    TEST(store_permissions),
    TEST(store_transactions),
    TEST(store_watches),
    TEST(store_unwatch_filter),
    TEST(domains_are_introduced_and_released),
    TEST(null_pointers_are_refused),
    TEST(threads_share_handles),
};

int main(int argc, char **argv)
{
    if (argc == 2) {
        for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
            if (!strcmp(argv[1], tests[i].name)) {
                tests[i].run();
                return 0;
            }
        }
    }
    if (argc == 3 && !strcmp(argv[1], "limit_is")) {
        uint32_t refs[4096];
        int limit = atoi(argv[2]);
        FAILS(!xengntshr_share_pages(sharer(1), 2, limit + 1, refs, 1), ENOSPC);
        CHECK(xengntshr_share_pages(sharer(1), 2, limit, refs, 1));
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "count_to")) {
        count_to(atoi(argv[2]));
        return 0;
    }
    if (argc == 4 && !strcmp(argv[1], "write")) {
        put(xs_open(0), 0, argv[2], argv[3]);
        return 0;
    }
    if (argc == 3 && !strcmp(argv[1], "print")) {
        struct xs_handle *h = xs_open(0);
        char *value = h ? xs_read(h, 0, argv[2], NULL) : NULL;
        CHECK(value);
        printf("%s\n", value);
        return 0;
    }
    fprintf(stderr, "no such test\n");
    return 2;
}
