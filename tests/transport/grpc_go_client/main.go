// Makes unary calls with a deadline each, one after the other, on one connection.
package main

import (
	"context"
	"log"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/emptypb"
)

func main() {
	target, method := os.Args[1], os.Args[2]
	calls, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.NewClient(
		target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	for range calls {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		err := connection.Invoke(ctx, method, &emptypb.Empty{}, &emptypb.Empty{})
		cancel()
		if err != nil {
			log.Fatal(err)
		}
	}
}
