// SPDX-License-Identifier: Apache-2.0

// A service and its clients, in Go's own net/http: `service ADDRESS` counts words that it is sent; `service ADDRESS SECONDS CLIENTS`
// sends them, over kept-alive connections, checks each answer, and prints how many there were in a second.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const text = "the quick brown fox jumps over the lazy dog the end"

func serve(address string) {
	http.HandleFunc("/count", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		counts := map[string]int{}
		for _, word := range strings.Fields(string(body)) {
			counts[word]++
		}
		json.NewEncoder(w).Encode(counts)
	})
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(listener, nil))
}

func ask(client *http.Client, url string) {
	answer, err := client.Post(url, "text/plain", strings.NewReader(text))
	if err != nil {
		log.Fatal(err)
	}
	var counts map[string]int
	if err := json.NewDecoder(answer.Body).Decode(&counts); err != nil || counts["the"] != 3 || len(counts) != 9 {
		log.Fatal("wrong answer: ", counts, err)
	}
	io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
}

func load(address string, seconds, clients int) {
	var done atomic.Int64
	var all sync.WaitGroup
	end := time.Now().Add(time.Duration(seconds) * time.Second)
	for i := 0; i < clients; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			client := &http.Client{Transport: &http.Transport{}}
			for time.Now().Before(end) {
				ask(client, "http://"+address+"/count")
				done.Add(1)
			}
		}()
	}
	all.Wait()
	fmt.Printf("result: %.1f\n", float64(done.Load())/float64(seconds))
}

func main() {
	if len(os.Args) == 2 {
		serve(os.Args[1])
	}
	seconds, _ := strconv.Atoi(os.Args[2])
	clients, _ := strconv.Atoi(os.Args[3])
	load(os.Args[1], seconds, clients)
}
