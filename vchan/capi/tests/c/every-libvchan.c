/*
 * Every function of libvchan.h and libvchan-extra.h, blocking and not, from both ends in one process.
 * Build: gcc every-libvchan.c -lvchan-xen -lxenstore -lpthread
 *
 * The process is in two domains: libxensim.so reads XENSIM_DOMID whenever a handle is opened.
 */
#define _GNU_SOURCE
#include "check.h"
#include <dlfcn.h>
#include <libvchan-extra.h>
#include <poll.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xenevtchn.h>
#include <xenstore.h>

/* Exported, and declared in no public header of Qubes'. */
int libvchan__check_domain_alive(void *xc_handle, int dom);

static libvchan_t *server, *client;
static char bytes[1 << 16], got[1 << 16];

static void in_domain(const char *id)
{
    setenv("XENSIM_DOMID", id, 1);
}

static int readable(int fd, int milliseconds)
{
    struct pollfd event = { .fd = fd, .events = POLLIN };
    return poll(&event, 1, milliseconds);
}

/* Whether there is such a node in the server's home. */
static int exists(const char *path)
{
    unsigned length;
    in_domain("1");
    struct xs_handle *xs = xs_open(0);
    void *value = xs_read(xs, XBT_NULL, path, &length);
    int there = value != NULL;
    free(value);
    xs_close(xs);
    return there;
}

static void serve(int port)
{
    in_domain("1");
    CHECK(server = libvchan_server_init(2, port, 4096, 4096));
    CHECK(libvchan_is_open(server) == VCHAN_WAITING);
}

static void *read_later(void *size)
{
    usleep(30000);
    for (int done = 0, all = (intptr_t)size, n; done < all; done += n)
        CHECK((n = libvchan_read(client, got + done, all - done)) > 0);
    return NULL;
}

static void *write_later(void *size)
{
    usleep(30000);
    CHECK(libvchan_write(client, bytes, (intptr_t)size) == (intptr_t)size);
    return NULL;
}

static void keys(void)
{
    serve(7);
    CHECK(exists("data/vchan/2/7/ring-ref") && exists("data/vchan/2/7/event-channel"));
    libvchan_t *first = server;
    serve(8);
    in_domain("2");
    CHECK(client = libvchan_client_init(1, 8));
    CHECK(!libvchan_wait(server));
    CHECK(libvchan_is_open(server) == VCHAN_CONNECTED && libvchan_is_open(client) == VCHAN_CONNECTED);
    CHECK(!exists("data/vchan/2/8") && exists("data/vchan/2/7/ring-ref"));
    libvchan_close(client);
    CHECK(libvchan_is_open(server) == VCHAN_DISCONNECTED);
    libvchan_close(server);
    CHECK(exists("data/vchan/2"));
    /* No client came. */
    libvchan_close(first);
    CHECK(!exists("data/vchan/2"));
}

/* The server is a process of its own, since a handle's domain is that of the environment. */
static void waits_for_the_server(void)
{
    int status;
    /* A domain exists from its first handle on. */
    CHECK(!exists("data/vchan"));
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        usleep(50000);
        serve(9);
        CHECK(libvchan_recv(server, got, 5) == 5);
        CHECK(libvchan_send(server, got, 5) == 5);
        FAILS(libvchan_recv(server, got, 1), -1, EPIPE);
        libvchan_close(server);
        exit(0);
    }
    in_domain("2");
    CHECK(client = libvchan_client_init(1, 9));
    CHECK(libvchan_is_open(client) == VCHAN_CONNECTED);
    CHECK(libvchan_write(client, "hello", 5) == 5);
    CHECK(libvchan_read(client, got, 100) == 5 && !memcmp(got, "hello", 5));
    libvchan_close(client);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void asynchronous(void)
{
    EVTCHN fd;
    in_domain("2");
    CHECK(client = libvchan_client_init_async(1, 10, &fd));
    CHECK(libvchan_is_open(client) == VCHAN_WAITING);
    CHECK(readable(fd, 5000) == 1);
    CHECK(libvchan_client_init_async_finish(client, true) == 1);
    while (readable(fd, 50) == 1)
        CHECK(libvchan_client_init_async_finish(client, true) == 1);
    FAILS(libvchan_read(client, got, 1), -1, EAGAIN);
    FAILS(libvchan_recv(client, got, 1), -1, EAGAIN);
    FAILS(libvchan_write(client, got, 1), -1, EAGAIN);
    FAILS(libvchan_send(client, got, 1), -1, EAGAIN);
    FAILS(libvchan_fd_for_select(client), -1, EAGAIN);
    CHECK(!libvchan_wait(client) && !libvchan_data_ready(client) && !libvchan_buffer_space(client));
    errno = 0;
    libvchan_set_blocking(client, true);
    CHECK(errno == 0);
    int error;
    CHECK(strstr(libvchan_last_error(&error), "not appeared") && error == EAGAIN);

    serve(10);
    in_domain("2");
    int state = 1;
    while (state == 1 && readable(fd, 5000) == 1)
        state = libvchan_client_init_async_finish(client, false);
    CHECK(state == 0);
    FAILS(libvchan_client_init_async_finish(client, false), -1, EINVAL);
    /* It does not block. */
    CHECK(libvchan_read(client, got, 1) == 0);
    libvchan_close(client);
    libvchan_close(server);

    /* Given up halfway. */
    in_domain("2");
    CHECK(client = libvchan_client_init_async(1, 11, &fd));
    libvchan_close(client);
}

static void bytes_and_events(void)
{
    pthread_t thread;
    serve(12);
    in_domain("2");
    CHECK(client = libvchan_client_init(1, 12));
    CHECK(!libvchan_wait(server));
    int fd = libvchan_fd_for_select(server);
    libvchan_set_blocking(server, false);
    libvchan_set_blocking(client, false);
    CHECK(libvchan_read(server, got, 9) == 0 && libvchan_recv(server, got, 9) == 0);
    CHECK(libvchan_data_ready(server) == 0 && libvchan_buffer_space(server) == 4096);
    CHECK(readable(fd, 20) == 0);
    CHECK(libvchan_write(client, bytes, 5000) == 4096);
    CHECK(readable(fd, 5000) == 1);
    CHECK(libvchan_wait(server) == 0);
    CHECK(libvchan_send(client, bytes, 1) == 0 && libvchan_buffer_space(client) == 0);
    CHECK(libvchan_data_ready(server) == 4096);
    CHECK(libvchan_recv(server, got, 5000) == 0);
    CHECK(libvchan_recv(server, got, 4000) == 4000);
    CHECK(libvchan_read(server, got + 4000, 4000) == 96 && !memcmp(got, bytes, 4096));
    CHECK(readable(libvchan_fd_for_select(client), 5000) == 1);
    CHECK(libvchan_send(server, bytes, 4097) == 0);

    libvchan_set_blocking(server, true);
    libvchan_set_blocking(client, true);
    CHECK(!pthread_create(&thread, NULL, read_later, (void *)50000));
    CHECK(libvchan_write(server, bytes, 50000) == 50000);
    pthread_join(thread, NULL);
    CHECK(!memcmp(got, bytes, 50000));
    CHECK(!pthread_create(&thread, NULL, write_later, (void *)20000));
    for (int done = 0; done < 20000; done += 2500)
        CHECK(libvchan_recv(server, got + done, 2500) == 2500);
    pthread_join(thread, NULL);
    CHECK(!memcmp(got, bytes, 20000));
    FAILS(libvchan_send(server, bytes, 4097), -1, EMSGSIZE);

    int pipes[2];
    CHECK(!pipe(pipes) && write(pipes[1], "straight", 8) == 8);
    CHECK(libvchan_read_from_fd(client, pipes[0], 100) == 8);
    CHECK(libvchan_write_to_fd(server, pipes[1], 100) == 8);
    CHECK(read(pipes[0], got, 100) == 8 && !memcmp(got, "straight", 8));
    close(pipes[0]), close(pipes[1]);
    /* What calls that blocked have taken counts, too. */
    for (int events = 0; !libvchan_wait_timeout(server, 20); events++)
        CHECK(events < 5);
    FAILS(libvchan_wait_timeout(server, 20), -1, ETIMEDOUT);

    libvchan_close(server);
    CHECK(libvchan_is_open(client) == VCHAN_DISCONNECTED);
    FAILS(libvchan_read(client, got, 1), -1, EPIPE);
    FAILS(libvchan_write(client, got, 1), -1, EPIPE);
    libvchan_close(client);
}

/* Between the library and libxenevtchn: how often it is asked whether a domain exists, which is done by binding its port 0;
 * and no domain does, if that is wanted. */
static int asked, none_exists;

int xenevtchn_bind_interdomain(xenevtchn_handle *events, uint32_t domid, evtchn_port_t port)
{
    int (*bind)(xenevtchn_handle *, uint32_t, evtchn_port_t) = dlsym(RTLD_NEXT, "xenevtchn_bind_interdomain");
    asked += port == 0;
    if (port == 0 && none_exists) {
        errno = ESRCH;
        return -1;
    }
    return bind(events, domid, port);
}

static void the_end_of_a_domain(void)
{
    serve(14);
    in_domain("2");
    CHECK(client = libvchan_client_init(1, 14));
    CHECK(libvchan_send(server, bytes, 10) == 10);
    usleep(1100000);
    asked = 0;
    /* Not with each call. */
    for (int i = 0; i < 10000; i++)
        CHECK(libvchan_is_open(client) == VCHAN_CONNECTED);
    CHECK(asked >= 1 && asked < 60);
    none_exists = 1;
    for (int tries = 0; libvchan_is_open(client) == VCHAN_CONNECTED; tries++) {
        CHECK(tries < 5000);
        usleep(1000);
    }
    CHECK(libvchan_is_open(client) == VCHAN_DISCONNECTED);
    /* What it had sent is there. */
    CHECK(libvchan_recv(client, got, 10) == 10);
    FAILS(libvchan_read(client, got, 1), -1, ECONNRESET);
    FAILS(libvchan_write(client, got, 1), -1, ECONNRESET);
    FAILS(libvchan_wait(client), -1, ECONNRESET);
    CHECK(libvchan__check_domain_alive(NULL, 1) == 0);
    none_exists = 0;
    libvchan_close(client);
    libvchan_close(server);
}

static void what_cannot_be(void)
{
    EVTCHN fd;
    in_domain("1");
    FAILS(libvchan_server_init(2, -1, 0, 0), NULL, EINVAL);
    FAILS(libvchan_server_init(-2, 1, 0, 0), NULL, EINVAL);
    FAILS(libvchan_server_init(1, 1, 0, 0), NULL, EINVAL);
    FAILS(libvchan_server_init(2, 1, (1 << 20) + 1, 0), NULL, EINVAL);
    FAILS(libvchan_client_init(1, 1), NULL, EINVAL);
    FAILS(libvchan_client_init(0x7ff0, 1), NULL, EINVAL);
    FAILS(libvchan_client_init(2, -1), NULL, EINVAL);
    FAILS(libvchan_client_init_async(2, 1, NULL), NULL, EINVAL);
    FAILS(libvchan_client_init_async(-1, 1, &fd), NULL, EINVAL);
    FAILS(libvchan_read(NULL, got, 1), -1, EINVAL);
    FAILS(libvchan_is_open(NULL), VCHAN_DISCONNECTED, EINVAL);
    FAILS(libvchan_client_init_async_finish(NULL, true), -1, EINVAL);
    libvchan_close(NULL);
    serve(13);
    libvchan_close(server);
    FAILS(libvchan_wait(server), -1, EBADF);
    /* A domain that never was. (1 and 2 have been seen.) */
    CHECK(libvchan__check_domain_alive(NULL, 2) == 1);
    CHECK(libvchan__check_domain_alive(NULL, 77) == 0);
}

int main(void)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = i * 7 + (i >> 8);
    alarm(60);
    /* Before there are threads: it forks. */
    waits_for_the_server();
    keys();
    asynchronous();
    bytes_and_events();
    the_end_of_a_domain();
    what_cannot_be();
    puts("ok");
    return 0;
}
