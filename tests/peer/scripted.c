/*
 * An end of a channel that does what it is told, over libxenvchan: the other make of the example vchan-scripted of the
 * crate vchan, which understands and answers the same. Build: gcc scripted.c -o scripted -lxenvchan -lxengnttab -lxenstore
 *
 * Reads commands from standard input, a line each, and answers each with a line.
 *
 *   serve DOMID PATH LEFT_MIN RIGHT_MIN [persist]   sets up a channel
 *   connect DOMID PATH                              attaches to one
 *                       both say "orders LEFT RIGHT", or "refused"
 *   blocking 0|1        says "done"
 *   write N SEED        as many of the first N bytes of a seed as there is room for; all of them, if it blocks
 *   send N SEED         all of them at once, or none
 *   read N, recv N      at most N bytes; N bytes or none
 *                       these say the number of bytes (and of those that were received a sum), "would-block" or "closed"
 *   ready, space, open  say the number that the library does
 *   give-back           says "done": libxenvchan holds no room back
 *   wait                waits for an event; says "woken"
 *   close               says "done"
 *
 * And, without a channel of its own, for the domain that one is offered to:
 *
 *   page DOMID PATH     says all bytes of the control page, hexadecimal
 *   rings DOMID PATH    says the sums of all bytes of the left and the right ring
 */
#include <inttypes.h>
#include <libxenvchan.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xengnttab.h>
#include <xenstore.h>

enum { PAGE = 4096, LARGEST = 4 << 20, PATIENCE = 60 /* seconds */ };

static struct libxenvchan *vchan;
static unsigned char bytes[LARGEST];

__attribute__((noreturn)) static void fail(const char *what)
{
    printf("error: %s\n", what);
    exit(1);
}

__attribute__((format(printf, 1, 2))) static void answer(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
    fflush(stdout);
}

/* The first bytes of a seed: those of SplitMix64's numbers, the lowest first. */
static void fill(size_t count, uint64_t seed)
{
    for (size_t at = 0; at < count; at += 8) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        z ^= z >> 31;
        memcpy(bytes + at, &z, count - at < 8 ? count - at : 8);
    }
}

/* Each number of 8 bytes (the last one filled up with zeros) and each bit of it counts, and where it stands. */
static uint64_t sum_of(const unsigned char *from, size_t count)
{
    uint64_t sum = count;
    for (size_t at = 0; at < count; at += 8) {
        uint64_t number = 0;
        memcpy(&number, from + at, count - at < 8 ? count - at : 8);
        sum = (sum ^ number) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
    }
    return sum;
}

static void opened(void)
{
    if (!vchan) {
        answer("refused");
        return;
    }
    vchan->blocking = 0; /* never initialised by the library */
    answer("orders %d %d", vchan->is_server ? vchan->read.order : vchan->write.order,
           vchan->is_server ? vchan->write.order : vchan->read.order);
}

static void serve(int domid, const char *path, size_t left_min, size_t right_min, int persist)
{
    vchan = libxenvchan_server_init(NULL, domid, path, left_min, right_min);
    if (vchan)
        vchan->server_persist = persist;
    opened();
}

static void sent(int result, size_t asked)
{
    if (result < 0)
        answer("closed");
    else if (result == 0 && asked > 0)
        answer("would-block");
    else
        answer("%d", result);
}

static void received(int result, size_t asked)
{
    if (result > 0)
        answer("%d %016" PRIx64, result, sum_of(bytes, result));
    else
        sent(result, asked);
}

static void await_event(void)
{
    struct pollfd event = { .fd = libxenvchan_fd_for_select(vchan), .events = POLLIN };
    if (poll(&event, 1, PATIENCE * 1000) != 1)
        fail("no event");
    if (libxenvchan_wait(vchan))
        fail("libxenvchan_wait failed");
    answer("woken");
}

static xengnttab_handle *grants;
static struct xs_handle *store;

static void *map(int domid, uint32_t *refs, size_t count)
{
    if (!grants && !(grants = xengnttab_open(NULL, 0)))
        fail("xengnttab_open failed");
    void *mapped = xengnttab_map_domain_grant_refs(grants, count, domid, refs, PROT_READ);
    if (!mapped)
        fail("a grant cannot be mapped");
    return mapped;
}

static struct vchan_interface *map_page(int domid, const char *path)
{
    char key[300];
    snprintf(key, sizeof key, "%s/ring-ref", path);
    if (!store && !(store = xs_open(0)))
        fail("xs_open failed");
    char *value = xs_read(store, XBT_NULL, key, NULL);
    if (!value)
        fail("no ring-ref");
    uint32_t ref = strtoul(value, NULL, 10);
    free(value);
    return map(domid, &ref, 1);
}

static void show_page(int domid, const char *path)
{
    static char text[2 * PAGE + 1];
    unsigned char *page = (void *)map_page(domid, path);
    for (int i = 0; i < PAGE; i++)
        sprintf(text + 2 * i, "%02x", page[i]);
    answer("%s", text);
    xengnttab_unmap(grants, page, 1);
}

static uint64_t ring_sum(int domid, struct vchan_interface *page, int order, size_t first)
{
    if (order < 12)
        return sum_of((unsigned char *)page + (1 << order), 1 << order);
    size_t count = (size_t)1 << (order - 12);
    unsigned char *ring = map(domid, page->grants + first, count);
    uint64_t sum = sum_of(ring, count * PAGE);
    xengnttab_unmap(grants, ring, count);
    return sum;
}

static void sum_rings(int domid, const char *path)
{
    struct vchan_interface *page = map_page(domid, path);
    int left = page->left_order, right = page->right_order;
    uint64_t left_sum = ring_sum(domid, page, left, 0);
    uint64_t right_sum = ring_sum(domid, page, right, left < 12 ? 0 : (size_t)1 << (left - 12));
    answer("%016" PRIx64 " %016" PRIx64, left_sum, right_sum);
    xengnttab_unmap(grants, page, 1);
}

int main(void)
{
    char line[400], path[300], word[10] = "";
    int domid, on;
    size_t count, other;
    uint64_t seed;
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "serve %d %299s %zu %zu %9s", &domid, path, &count, &other, word) >= 4) {
            serve(domid, path, count, other, !strcmp(word, "persist"));
            *word = 0;
        } else if (sscanf(line, "connect %d %299s", &domid, path) == 2) {
            vchan = libxenvchan_client_init(NULL, domid, path);
            opened();
        } else if (sscanf(line, "page %d %299s", &domid, path) == 2) {
            show_page(domid, path);
        } else if (sscanf(line, "rings %d %299s", &domid, path) == 2) {
            sum_rings(domid, path);
        } else if (!vchan) {
            fail("there is no channel");
        } else if (sscanf(line, "blocking %d", &on) == 1) {
            vchan->blocking = on;
            answer("done");
        } else if (sscanf(line, "write %zu %" SCNu64, &count, &seed) == 2 && count <= LARGEST) {
            fill(count, seed);
            sent(libxenvchan_write(vchan, bytes, count), count);
        } else if (sscanf(line, "send %zu %" SCNu64, &count, &seed) == 2 && count <= LARGEST) {
            fill(count, seed);
            sent(libxenvchan_send(vchan, bytes, count), count);
        } else if (sscanf(line, "read %zu", &count) == 1 && count <= LARGEST) {
            received(libxenvchan_read(vchan, bytes, count), count);
        } else if (sscanf(line, "recv %zu", &count) == 1 && count <= LARGEST) {
            received(libxenvchan_recv(vchan, bytes, count), count);
        } else if (!strcmp(line, "ready\n")) {
            answer("%d", libxenvchan_data_ready(vchan));
        } else if (!strcmp(line, "space\n")) {
            answer("%d", libxenvchan_buffer_space(vchan));
        } else if (!strcmp(line, "open\n")) {
            answer("%d", libxenvchan_is_open(vchan));
        } else if (!strcmp(line, "give-back\n")) {
            answer("done");
        } else if (!strcmp(line, "wait\n")) {
            await_event();
        } else if (!strcmp(line, "close\n")) {
            libxenvchan_close(vchan);
            vchan = NULL;
            answer("done");
        } else {
            fail("no such command");
        }
    }
    return 0;
}
