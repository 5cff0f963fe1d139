// Command goclient sends the load of one measurement with grpc-go.
//
// Its only argument is a JSON file with a Load (loadtest/load.py); it prints a Sample
// as JSON. Every call carries a deadline, as calls in production do.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const callTimeout = 10 * time.Second

type load struct {
	Port        int     `json:"port"`
	Path        string  `json:"path"`
	Message     string  `json:"message"`
	ReplyBytes  int     `json:"reply_bytes"`
	Connections int     `json:"connections"`
	Calls       int     `json:"calls"`
	Seconds     float64 `json:"seconds"`
}

type sample struct {
	Requests     int     `json:"requests"`
	RequestsPerS float64 `json:"requests_per_s"`
	P50Ms        float64 `json:"p50_ms"`
	P99Ms        float64 `json:"p99_ms"`
	Bad          int     `json:"bad"`
	ClientShare  float64 `json:"client_share"`
}

// raw passes messages through as bytes: they were serialised before.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append((*v.(*[]byte))[:0], data...)
	return nil
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: goclient JOB.json")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var job load
	if err := json.Unmarshal(text, &job); err != nil {
		log.Fatal(err)
	}
	message, err := os.ReadFile(job.Message)
	if err != nil {
		log.Fatal(err)
	}
	found, err := measure(job, message)
	if err != nil {
		log.Fatal(err)
	}
	printed, err := json.Marshal(found)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(printed))
}

// measure keeps every connection's number of calls open until the time is over.
func measure(job load, message []byte) (sample, error) {
	var (
		group sync.WaitGroup
		lock  sync.Mutex
		took  []time.Duration
		bad   int
	)
	started, cpu := time.Now(), cpuTime()
	length := time.Duration(job.Seconds * float64(time.Second))
	for range job.Connections {
		connection, err := grpc.NewClient(
			fmt.Sprintf("127.0.0.1:%d", job.Port),
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})),
		)
		if err != nil {
			return sample{}, err
		}
		defer connection.Close()
		for range job.Calls {
			group.Add(1)
			go func() {
				defer group.Done()
				mine, failed := caller(connection, job, message, started.Add(length))
				lock.Lock()
				defer lock.Unlock()
				took = append(took, mine...)
				bad += failed
			}()
		}
	}
	group.Wait()
	share := (cpuTime() - cpu).Seconds() / time.Since(started).Seconds()
	sort.Slice(took, func(a, b int) bool { return took[a] < took[b] })
	return sample{
		Requests:     len(took),
		RequestsPerS: float64(len(took)) / job.Seconds,
		P50Ms:        percentile(took, 0.50),
		P99Ms:        percentile(took, 0.99),
		Bad:          bad,
		ClientShare:  share,
	}, nil
}

// caller makes one call after the other until the time is over.
func caller(
	connection *grpc.ClientConn, job load, message []byte, end time.Time,
) ([]time.Duration, int) {
	var took []time.Duration
	bad := 0
	for time.Now().Before(end) {
		began := time.Now()
		var reply []byte
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		err := connection.Invoke(ctx, job.Path, &message, &reply)
		cancel()
		if err != nil || len(reply) != job.ReplyBytes {
			bad++
			continue
		}
		took = append(took, time.Since(began))
	}
	return took, bad
}

func percentile(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(share*float64(len(sorted)-1))].Microseconds()) / 1000
}

func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
