/*
 * Every function of libxenvchan.h, blocking and not, from both ends in one process; over Debian's library and over ours
 * it has to print the same. Build: gcc every-xenvchan.c -lxenvchan -lxenevtchn -lpthread
 *
 * The process is in two domains: libxensim.so reads XENSIM_DOMID whenever a handle is opened.
 */
#include <libxenvchan.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH "data/vchan/2/7"
#define FULL_PATH "/local/domain/1/" PATH

#define SHOW(call) printf("%s = %d\n", #call, (int)(call))

_Static_assert(sizeof(struct libxenvchan) == 88, "size");
_Static_assert(offsetof(struct libxenvchan, gntshr) == 0, "gntshr");
_Static_assert(offsetof(struct libxenvchan, gnttab) == 0, "gnttab");
_Static_assert(offsetof(struct libxenvchan, ring) == 8, "ring");
_Static_assert(offsetof(struct libxenvchan, event) == 16, "event");
_Static_assert(offsetof(struct libxenvchan, event_port) == 24, "event_port");
_Static_assert(offsetof(struct libxenvchan, read) == 32, "read");
_Static_assert(offsetof(struct libxenvchan, write) == 56, "write");
_Static_assert(offsetof(struct libxenvchan, xs_path) == 80, "xs_path");
_Static_assert(offsetof(struct libxenvchan_ring, buffer) == 8, "buffer");
_Static_assert(offsetof(struct libxenvchan_ring, order) == 16, "order");

static struct libxenvchan *server, *client;
static char bytes[1 << 21], got[1 << 21];

static struct libxenvchan *serve(size_t left, size_t right)
{
    setenv("XENSIM_DOMID", "1", 1);
    struct libxenvchan *made = libxenvchan_server_init(NULL, 2, PATH, left, right);
    if (made)
        made->blocking = 0, made->server_persist = 0;
    return made;
}

static struct libxenvchan *join(const char *path)
{
    setenv("XENSIM_DOMID", "2", 1);
    struct libxenvchan *made = libxenvchan_client_init(NULL, 1, path);
    if (made)
        made->blocking = 0;
    return made;
}

/* Whether the descriptor is readable: right away, or within some seconds if it is to be. */
static int readable(struct libxenvchan *end, int expected)
{
    struct pollfd event = { .fd = libxenvchan_fd_for_select(end), .events = POLLIN };
    return poll(&event, 1, expected ? 5000 : 20);
}

/* Takes all events. */
static void quiet(struct libxenvchan *end)
{
    struct pollfd event = { .fd = libxenvchan_fd_for_select(end), .events = POLLIN };
    while (poll(&event, 1, 20) == 1)
        if (libxenvchan_wait(end))
            abort();
}

static void fields(const char *whose, struct libxenvchan *end)
{
    printf("%s: is_server %d, orders %d %d, path %d\n", whose, end->is_server & 1, end->read.order, end->write.order,
           end->is_server && !strcmp(end->xs_path, PATH));
    struct ring_shared *left = &end->ring->left, *right = &end->ring->right;
    printf("indices where they belong: %d %d\n", end->read.shr == (end->is_server ? left : right),
           end->write.shr == (end->is_server ? right : left));
    printf("handles: %d %d, port %d\n", !!end->gntshr, xenevtchn_fd(end->event) == libxenvchan_fd_for_select(end),
           end->event_port > 0);
}

static void *write_later(void *size)
{
    usleep(30000);
    return (void *)(intptr_t)libxenvchan_write(client, bytes, *(int *)size);
}

static void *read_later(void *size)
{
    usleep(30000);
    int all = *(int *)size;
    for (int done = 0; done < all;) {
        int n = libxenvchan_read(client, got + done, all - done);
        if (n < 0)
            break;
        if (!n)
            usleep(100);
        done += n;
    }
    return NULL;
}

static void *close_later(void *end)
{
    usleep(30000);
    libxenvchan_close(end);
    return NULL;
}

/* What the other thread did, once it has. */
static int done(pthread_t thread)
{
    void *result;
    if (pthread_join(thread, &result))
        abort();
    return (intptr_t)result;
}

static pthread_t later(void *(*what)(void *), void *argument)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, what, argument))
        abort();
    return thread;
}

static void conversation(size_t left, size_t right)
{
    printf("# rings of at least %zu and %zu\n", left, right);
    server = serve(left, right);
    fields("server", server);
    SHOW(libxenvchan_is_open(server));
    SHOW(libxenvchan_write(server, "early", 5));
    client = join(FULL_PATH);
    fields("client", client);
    SHOW(libxenvchan_is_open(server));
    SHOW(libxenvchan_is_open(client));
    SHOW(readable(server, 1));
    SHOW(libxenvchan_wait(server));
    SHOW(libxenvchan_data_ready(client));
    SHOW(libxenvchan_recv(client, got, 5));
    SHOW(memcmp(got, "early", 5));
    int size = 1 << server->read.order;
    quiet(server), quiet(client);

    printf("## not blocking\n");
    SHOW(libxenvchan_read(server, got, 100));
    SHOW(libxenvchan_recv(server, got, 100));
    SHOW(libxenvchan_data_ready(server));
    SHOW(readable(server, 0));
    SHOW(libxenvchan_buffer_space(client) == size);
    SHOW(libxenvchan_write(client, bytes, 100));
    SHOW(readable(server, 1));
    SHOW(libxenvchan_wait(server));
    SHOW(libxenvchan_data_ready(server));
    SHOW(memcmp(server->read.buffer + (server->read.shr->cons & (size - 1)), bytes, 100));
    SHOW(libxenvchan_recv(server, got, 101));
    SHOW(libxenvchan_recv(server, got, 60));
    SHOW(libxenvchan_read(server, got + 60, 100));
    SHOW(memcmp(got, bytes, 100));
    quiet(server);
    SHOW(libxenvchan_send(client, bytes, 7));
    SHOW(readable(server, 1));
    quiet(server);
    SHOW(libxenvchan_read(server, got, 1000));
    quiet(server);
    /* It got less than it wanted: it is told of more. */
    SHOW(libxenvchan_send(client, bytes, 8));
    SHOW(readable(server, 1));
    quiet(server);
    SHOW(libxenvchan_read(server, got, 8));
    quiet(client);
    SHOW(libxenvchan_write(client, bytes, size + 1) == size);
    SHOW(libxenvchan_write(client, bytes, 1));
    SHOW(libxenvchan_send(client, bytes, 1));
    SHOW(libxenvchan_send(client, bytes, size + 1));
    SHOW(libxenvchan_buffer_space(client));
    SHOW(readable(client, 0));
    SHOW(libxenvchan_read(server, got, 10));
    SHOW(readable(client, 1));
    quiet(client);
    SHOW(libxenvchan_buffer_space(client));
    SHOW(libxenvchan_write(client, bytes + size, 20));
    SHOW(libxenvchan_recv(server, got + 10, size) == size);
    SHOW(memcmp(got, bytes, size + 10));
    SHOW(libxenvchan_data_ready(server));
    SHOW(libxenvchan_read(server, got, 0));
    SHOW(libxenvchan_write(server, got, 0));
    SHOW(libxenvchan_recv(server, got, size + 1));
    quiet(server), quiet(client);

    printf("## blocking\n");
    server->blocking = 1;
    int count = 33, many = 5 * size + 5;
    pthread_t thread = later(write_later, &count);
    SHOW(libxenvchan_read(server, got, 1000));
    SHOW(done(thread));
    thread = later(write_later, &count);
    SHOW(libxenvchan_recv(server, got, 33));
    SHOW(done(thread));
    thread = later(read_later, &many);
    SHOW(libxenvchan_write(server, bytes, many) == many);
    done(thread);
    SHOW(memcmp(got, bytes, many));
    int whole = 1 << server->write.order, two = 2 * whole;
    memset(got, 1, two);
    thread = later(read_later, &two);
    SHOW(libxenvchan_send(server, bytes, whole) == whole);
    SHOW(libxenvchan_send(server, bytes + whole, whole) == whole);
    done(thread);
    SHOW(memcmp(got, bytes, two));
    SHOW(libxenvchan_send(server, bytes, whole + 1));
    SHOW(libxenvchan_recv(server, got, size + 1));
    count = 9;
    thread = later(write_later, &count);
    while (libxenvchan_data_ready(server) < 9)
        if (libxenvchan_wait(server))
            abort();
    SHOW(done(thread));
    SHOW(libxenvchan_data_ready(server));
    SHOW(libxenvchan_recv(server, got, 9));

    printf("## events are callers' to send\n");
    quiet(client);
    SHOW(xenevtchn_notify(server->event, server->event_port));
    SHOW(readable(client, 1));
    quiet(client);

    printf("## a client follows another one\n");
    server->blocking = 0;
    SHOW(libxenvchan_write(client, bytes, 50));
    libxenvchan_close(client);
    SHOW(libxenvchan_is_open(server));
    SHOW(libxenvchan_recv(server, got, 40));
    SHOW(libxenvchan_recv(server, got, 20));
    SHOW(libxenvchan_read(server, got, 20));
    SHOW(libxenvchan_read(server, got, 20));
    SHOW(libxenvchan_write(server, bytes, 20));
    SHOW(libxenvchan_send(server, bytes, 20));
    SHOW(libxenvchan_data_ready(server));
    server->server_persist = 1;
    SHOW(libxenvchan_is_open(server));
    SHOW(libxenvchan_read(server, got, 20));
    SHOW(libxenvchan_write(server, bytes, 20));
    server->server_persist = 0;
    SHOW(libxenvchan_is_open(server));
    quiet(server);
    client = join(FULL_PATH);
    SHOW(libxenvchan_is_open(server));
    SHOW(readable(server, 1));
    SHOW(libxenvchan_recv(client, got, 20));
    SHOW(libxenvchan_write(client, bytes, 6));
    SHOW(libxenvchan_recv(server, got, 6));

    printf("## the end, while one waits\n");
    client->blocking = 1;
    thread = later(close_later, server);
    SHOW(libxenvchan_read(client, got, 1));
    done(thread);
    SHOW(libxenvchan_is_open(client));
    SHOW(libxenvchan_read(client, got, 1));
    SHOW(libxenvchan_recv(client, got, 1));
    SHOW(libxenvchan_write(client, got, 1));
    SHOW(libxenvchan_send(client, got, 1));
    SHOW(libxenvchan_fd_for_select(client) >= 0);
    libxenvchan_close(client);
    /* The keys are gone. */
    SHOW(join(FULL_PATH) != NULL);
}

int main(void)
{
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = i * 7 + (i >> 8);
    conversation(0, 0);
    conversation(2048, 1000);
    conversation(4096, 65536);

    printf("# a poked live byte\n");
    server = serve(0, 0);
    client = join(FULL_PATH);
    SHOW(libxenvchan_is_open(client));
    client->ring->srv_live = 0;
    SHOW(libxenvchan_is_open(client));
    SHOW(libxenvchan_read(client, got, 1));
    SHOW(libxenvchan_write(client, got, 1));
    libxenvchan_close(client);
    libxenvchan_close(server);

    printf("# what cannot be\n");
    SHOW(serve((1 << 20) + 1, 0) != NULL);
    SHOW(serve(0, (1 << 20) + 1) != NULL);
    SHOW(join("/local/domain/1/data/none") != NULL);
    libxenvchan_close(NULL);
    return 0;
}
