// A peer of the rpc rows of tools/bench: the service of ../bench.proto with gRPC C++, server and client asynchronous
// on one completion queue each.
//
//     grpc-cpp serve SOCKET
//     grpc-cpp unary SOCKET CALLS SECONDS
//     grpc-cpp stream SOCKET EVENTS WATCHERS
#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "bench.grpc.pb.h"

using namespace drivebackup::v1;
using drivebackup::bench::v1::Bench;
using Clock = std::chrono::steady_clock;

// What is on its way through a completion queue.
struct Step {
    virtual ~Step() = default;
    virtual void done(bool ok) = 0;
};

[[noreturn]] static void fail(const std::string &what) {
    fprintf(stderr, "grpc-cpp: %s\n", what.c_str());
    exit(1);
}

static void fill(Job &job, const std::string &id) {
    job.set_id(id);
    job.set_type(JOB_TYPE_BACKUP);
    job.set_drive("vm1");
    job.set_target("/backup/vm1/2026-11-26T01-00-00.qcow2");
    job.set_state(JOB_STATE_RUNNING);
    job.mutable_progress()->set_current(123456789012);
    job.mutable_progress()->set_total(549755813888);
    job.set_speed(104857600);
    job.set_sync(SYNC_MODE_FULL);
    job.set_format("qcow2");
    job.set_point_in_time(1795651200123456789);
    job.set_created_at(1795651200023456789);
    job.set_manual_dismiss(true);
    job.set_last_sequence(4711);
    job.mutable_staging()->set_used(1048576);
    job.mutable_staging()->set_limit(10737418240);
    job.set_manifest("/backup/vm1/2026-11-26T01-00-00.qcow2.manifest.json");
    job.set_restarts(1);
    job.set_on_source_error(ERROR_POLICY_REPORT);
    job.set_on_target_error(ERROR_POLICY_ENOSPC);
}

struct GetCall : Step {
    Bench::AsyncService &service;
    grpc::ServerCompletionQueue &queue;
    grpc::ServerContext context;
    GetJobRequest request;
    Job job;
    grpc::ServerAsyncResponseWriter<Job> writer{&context};
    bool answered = false;

    GetCall(Bench::AsyncService &service, grpc::ServerCompletionQueue &queue) : service(service), queue(queue) {
        service.RequestGet(&context, &request, &writer, &queue, &queue, this);
    }
    void done(bool ok) override {
        if (answered || !ok) {
            delete this;
            return;
        }
        new GetCall(service, queue);
        answered = true;
        fill(job, request.job_id());
        writer.Finish(job, grpc::Status::OK, this);
    }
};

struct WatchCall : Step {
    Bench::AsyncService &service;
    grpc::ServerCompletionQueue &queue;
    grpc::ServerContext context;
    WatchJobRequest request;
    grpc::ServerAsyncWriter<JobEvent> writer{&context};
    uint64_t sequence = 0;
    bool began = false, finished = false;

    WatchCall(Bench::AsyncService &service, grpc::ServerCompletionQueue &queue) : service(service), queue(queue) {
        service.RequestWatch(&context, &request, &writer, &queue, &queue, this);
    }
    void done(bool ok) override {
        if (finished || (!began && !ok)) {
            delete this;
            return;
        }
        if (!began) new WatchCall(service, queue);
        began = true;
        if (!ok || sequence == request.after_sequence()) {
            finished = true;
            writer.Finish(grpc::Status::OK, this);
            return;
        }
        JobEvent event;
        event.set_sequence(++sequence);
        event.set_time(1795651200123456789 + int64_t(sequence));
        event.set_job_id(request.job_id());
        event.mutable_progress()->set_current(int64_t(sequence) << 20);
        event.mutable_progress()->set_total(549755813888);
        writer.Write(event, this);
    }
};

static void serve(const std::string &socket) {
    Bench::AsyncService service;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + socket, grpc::InsecureServerCredentials());
    builder.RegisterService(&service);
    auto queue = builder.AddCompletionQueue();
    auto server = builder.BuildAndStart();
    if (!server) fail("couldn't listen on " + socket);
    for (int i = 0; i < 64; i++) new GetCall(service, *queue);
    new WatchCall(service, *queue);
    void *tag;
    bool ok;
    while (queue->Next(&tag, &ok)) static_cast<Step *>(tag)->done(ok);
}

// One call after the other until `end`.
struct Caller : Step {
    Bench::Stub &stub;
    grpc::CompletionQueue &queue;
    Clock::time_point start, end, before;
    std::vector<int64_t> &times;
    std::unique_ptr<grpc::ClientContext> context;
    std::unique_ptr<grpc::ClientAsyncResponseReader<Job>> reader;
    GetJobRequest request;
    Job job;
    grpc::Status status;

    Caller(Bench::Stub &stub, grpc::CompletionQueue &queue, Clock::time_point start, Clock::time_point end,
           std::vector<int64_t> &times)
        : stub(stub), queue(queue), start(start), end(end), before(Clock::now()), times(times) {
        request.set_job_id("backup-vm1-0001");
        call();
    }
    void call() {
        context = std::make_unique<grpc::ClientContext>();
        reader = stub.AsyncGet(context.get(), request, &queue);
        reader->Finish(&job, &status, this);
    }
    void done(bool) override {
        if (!status.ok() || job.last_sequence() != 4711) fail("a call failed: " + status.error_message());
        auto now = Clock::now();
        if (now >= start && now < end) times.push_back((now - before).count());
        before = now;
        if (now < end) call();
        else over = true;
    }
    bool over = false;
};

static void unary(Bench::Stub &stub, int calls, int seconds) {
    grpc::CompletionQueue queue;
    auto start = Clock::now() + std::chrono::milliseconds(300), end = start + std::chrono::seconds(seconds);
    std::vector<int64_t> times;
    std::list<Caller> callers;
    for (int i = 0; i < calls; i++) callers.emplace_back(stub, queue, start, end, times);
    void *tag;
    bool ok;
    for (int running = calls; running > 0 && queue.Next(&tag, &ok);) {
        auto caller = static_cast<Caller *>(static_cast<Step *>(tag));
        caller->done(ok);
        if (caller->over) running--;
    }
    if (times.empty()) fail("no call ended in time");
    std::sort(times.begin(), times.end());
    printf("{\"calls\": %zu, \"seconds\": %d, \"p50_us\": %.3f, \"p99_us\": %.3f}\n", times.size(), seconds,
           times[times.size() / 2] / 1000.0, times[times.size() * 99 / 100] / 1000.0);
}

struct Watcher : Step {
    grpc::CompletionQueue &queue;
    grpc::ClientContext context;
    std::unique_ptr<grpc::ClientAsyncReader<JobEvent>> reader;
    grpc::Alarm alarm;
    JobEvent event;
    grpc::Status status;
    uint64_t count = 0;
    bool slow, waits = true, ending = false, over = false;

    Watcher(Bench::Stub &stub, grpc::CompletionQueue &queue, uint64_t events, bool slow) : queue(queue), slow(slow) {
        WatchJobRequest request;
        request.set_job_id("backup-vm1-0001");
        request.set_after_sequence(events);
        reader = stub.AsyncWatch(&context, request, &queue, this);
    }
    void done(bool ok) override {
        if (ending) {
            over = true;
            return;
        }
        if (waits) {  // The call has begun, or the slow one has slept.
            waits = false;
            reader->Read(&event, this);
            return;
        }
        if (!ok) {
            ending = true;
            reader->Finish(&status, this);
            return;
        }
        if (event.sequence() != ++count) fail("an event is missing");
        if (slow) {
            waits = true;
            alarm.Set(&queue, std::chrono::system_clock::now() + std::chrono::milliseconds(10), this);
        } else {
            reader->Read(&event, this);
        }
    }
};

static void stream(Bench::Stub &stub, int events, int watchers) {
    grpc::CompletionQueue queue;
    auto start = Clock::now();
    std::list<Watcher> all;
    for (int i = 0; i < watchers; i++) all.emplace_back(stub, queue, events, i == 0);
    Watcher &slow = all.front();
    void *tag;
    bool ok;
    int running = watchers - 1;
    double seconds = 0;
    while (!slow.over && queue.Next(&tag, &ok)) {
        auto watcher = static_cast<Watcher *>(static_cast<Step *>(tag));
        watcher->done(ok);
        if (watcher->over && !watcher->slow && --running == 0) {
            seconds = std::chrono::duration<double>(Clock::now() - start).count();
            slow.context.TryCancel();
        }
    }
    uint64_t delivered = 0;
    for (auto &watcher : all) {
        if (watcher.slow) continue;
        if (!watcher.status.ok()) fail("a watch failed: " + watcher.status.error_message());
        delivered += watcher.count;
    }
    printf("{\"events\": %llu, \"seconds\": %f}\n", (unsigned long long)delivered, seconds);
}

int main(int count, char **words) {
    std::string verb = count > 1 ? words[1] : "";
    if (verb == "serve" && count == 3) {
        serve(words[2]);
    } else if ((verb == "unary" || verb == "stream") && count == 5) {
        auto stub = Bench::NewStub(
            grpc::CreateChannel("unix:" + std::string(words[2]), grpc::InsecureChannelCredentials()));
        (verb == "unary" ? unary : stream)(*stub, atoi(words[3]), atoi(words[4]));
    } else {
        fprintf(stderr, "usage: grpc-cpp serve SOCKET | unary SOCKET CALLS SECONDS | stream SOCKET EVENTS WATCHERS\n");
        return 64;
    }
}
