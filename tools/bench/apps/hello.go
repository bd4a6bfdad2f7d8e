// SPDX-License-Identifier: Apache-2.0

// Command hello is net/http at both ends.
//
//	hello serve ADDRESS          answers every request with 13 bytes
//	hello load ADDRESS N SECONDS N connections with one request under way on each; prints JSON
//
// ADDRESS is host:port or the path of a unix socket.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func network(address string) string {
	if strings.HasPrefix(address, "/") {
		return "unix"
	}
	return "tcp"
}

func serve(address string) error {
	listener, err := net.Listen(network(address), address)
	if err != nil {
		return err
	}
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "Hello, world\n")
	}))
}

func once(client *http.Client) error {
	answer, err := client.Get("http://localhost/")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && (answer.StatusCode != 200 || string(body) != "Hello, world\n") {
		err = fmt.Errorf("unexpected answer: %s", answer.Status)
	}
	return err
}

func load(address string, connections int, lasting time.Duration) error {
	const warm = 1000 * time.Millisecond
	transport := &http.Transport{
		MaxIdleConnsPerHost: connections,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial(network(address), address)
		},
	}
	client := &http.Client{Transport: transport}
	latencies := make([][]time.Duration, connections)
	failures := make(chan error, connections)
	begin := time.Now().Add(warm)
	end := begin.Add(lasting)
	var all sync.WaitGroup
	var total int64
	for i := 0; i < connections; i++ {
		all.Add(1)
		go func(own *[]time.Duration) {
			defer all.Done()
			for before := time.Now(); before.Before(end); {
				if err := once(client); err != nil {
					failures <- err
					return
				}
				after := time.Now()
				atomic.AddInt64(&total, 1)
				if before.After(begin) && after.Before(end) {
					*own = append(*own, after.Sub(before))
				}
				before = after
			}
		}(&latencies[i])
	}
	all.Wait()
	select {
	case err := <-failures:
		return err
	default:
	}
	var sum []time.Duration
	for _, own := range latencies {
		sum = append(sum, own...)
	}
	if len(sum) == 0 {
		return fmt.Errorf("no request was answered in time")
	}
	sort.Slice(sum, func(i, k int) bool { return sum[i] < sum[k] })
	at := func(share float64) int64 { return sum[int(share*float64(len(sum)-1))].Nanoseconds() }
	fmt.Printf("{\"seconds\": %f, \"count\": %d, \"total\": %d, \"p50_ns\": %d, \"p99_ns\": %d, \"p999_ns\": %d}\n",
		lasting.Seconds(), len(sum), total, at(0.5), at(0.99), at(0.999))
	return nil
}

func run() error {
	if len(os.Args) == 3 && os.Args[1] == "serve" {
		return serve(os.Args[2])
	}
	if len(os.Args) != 5 || os.Args[1] != "load" {
		return fmt.Errorf("usage: hello serve ADDRESS | hello load ADDRESS CONNECTIONS SECONDS")
	}
	connections, err := strconv.Atoi(os.Args[3])
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseFloat(os.Args[4], 64)
	if err != nil {
		return err
	}
	return load(os.Args[2], connections, time.Duration(seconds*float64(time.Second)))
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "hello:", err)
		os.Exit(1)
	}
}
